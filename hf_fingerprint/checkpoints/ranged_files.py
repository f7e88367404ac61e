"""Fetch byte ranges of the files of one commit on the Hub.

The Hub may redirect a file to another host. The target is remembered, so that each later range costs one exchange. The
client drops the token on the redirect, so only the Hub sees it.
"""

import re
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.hub_client import format_repo, hub_errors
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.hub_versions import stream_response
from hf_fingerprint.checkpoints.limits import megabytes
from hf_fingerprint.checkpoints.naming import HubId
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.retrying import retry


RETRIES, FIRST_WAIT = 3, 0.5
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_CONNECTION_ERRORS = frozenset(  # names, since they differ between client versions
    {"RemoteProtocolError", "ReadError", "ConnectionError", "ChunkedEncodingError"}
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PAST_END = re.compile(r"bytes \*/(\d+)")


class _CutOffError(Exception):
    """A response body that broke off, or is not as long as its headers say."""


class RangesUnavailable(Exception):
    """The model can't or need not be read by ranges: download it instead."""


class DownloadLimitError(CheckpointError):
    """The byte limit is too small even for the headers of the weight files."""

    def __init__(self, repo: str, needed: int, allowed: int):
        super().__init__(
            f"{repo} needs {megabytes(needed, round_up=True)} MB or more to be read, and --max-mb allows "
            f"{megabytes(allowed)} MB: raise --max-mb."
        )


class RangedFiles:
    """The files of one commit, read by byte ranges.

    Args:
        hub_id ([`HubId`]): the model's folder in a repo, and the revision.
        max_bytes (`int`, *optional*): maximum number of file bytes to fetch, retries included.
        access ([`HubOptions`], *optional*): the token.

    Attributes:
        hub_id ([`HubId`]): the same with the current name of the repo, which differs if it was renamed.
        commit (`str`): the commit's hash.
        names (`list[str]`): all files of the model's folder.
        sizes (`dict[str, int | None]`): their sizes in bytes, `None` where unknown.
        bytes_fetched (`int`): file bytes received so far.
        requests (`int`): HTTP exchanges so far, redirects included; the client's own retries are not counted.

    Raises:
        [`CheckpointError`]: if there is no such repo or revision, or it is not accessible to this account.
        [`RangesUnavailable`]: if the Hub can't be reached.
    """

    def __init__(self, hub_id: HubId, max_bytes: int | None = None, access: HubOptions = NO_OPTIONS):
        self.bytes_fetched = self.requests = 0
        self._display_name, self._max_bytes = format_repo(hub_id.repo, hub_id.revision), max_bytes
        self._redirects: dict[str, tuple[str, bool]] = {}
        self._token = access.token
        info = _model_info(hub_id.repo, hub_id.revision, access.token)
        self.requests += 1 + (info.id != hub_id.repo)
        self.hub_id, self.commit = hub_id._replace(repo=str(info.id)), str(info.sha)
        sizes: dict[str, int | None] = {each.rfilename: each.size for each in info.siblings or []}
        self.names = hub_id.names_in_folder(sizes)
        self.sizes = {name: sizes[hub_id.path_in_repo(name)] for name in self.names}
        if not info.sha:
            raise RangesUnavailable

    def get(self, name: str, begin: int, end: int, whole: bool = False) -> tuple[np.ndarray, int]:
        """Bytes `begin` to `end` of a file, and the file's size.

        Args:
            name (`str`): the file.
            begin (`int`): first byte.
            end (`int`): end of the range; the result is shorter if the file ends before.
            whole (`bool`, *optional*, defaults to `False`): whether a response with the whole file is accepted, if the
                file ends before `end`.

        Returns:
            `(data, size)`: `uint8`, and the file's size in bytes.

        Raises:
            [`CheckpointError`]: if the bytes can't be fetched.
            [`RangesUnavailable`]: if the response isn't that range.
            [`DownloadLimitError`]: if they exceed the byte limit.
        """
        try:
            return retry(lambda: self._fetch_once(name, begin, end, whole), 1 + RETRIES, _delay)
        except (CheckpointError, RangesUnavailable):
            raise
        except Exception as error:  # the client's transport errors share no base class across its versions
            reason = "the connection broke off" if isinstance(error, _CutOffError) else type(error).__name__
            raise CheckpointError(
                f"{self._display_name} can't be fetched ({reason}): check the connection and run the command again."
            ) from None

    def _fetch_once(self, name: str, begin: int, end: int, whole: bool) -> tuple[np.ndarray, int]:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        known = self.sizes.get(name)
        wanted = (end if known is None else min(end, known)) - begin
        if self._max_bytes is not None and self.bytes_fetched + wanted > self._max_bytes:
            raise DownloadLimitError(self.hub_id.repo, self.bytes_fetched + wanted, self._max_bytes)
        url, with_token = self._redirects.get(name, ("", True))
        headers = build_hf_headers(token=self._token if with_token else False)
        headers |= {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
        repo, path, body = self.hub_id.repo, self.hub_id.path_in_repo(name), None
        address = url or hf_hub_url(repo, path, revision=self.commit)
        errors = hub_errors(repo, self.commit, self._token)
        with errors, stream_response(address, RETRIES, FIRST_WAIT, **options) as response:
            self.requests += 1 + len(response.history)
            expired = bool(url) and response.status_code in _EXPIRED
            if not expired:
                if response.status_code == 416 and (past_end := _PAST_END.fullmatch(_content_range(response))):
                    return np.empty(0, np.uint8), int(past_end[1])
                hf_raise_for_status(response)
                if response.history:
                    self._redirects[name] = str(response.url), "authorization" in response.request.headers
                count, size = _parse_content_range(response, begin, end, whole)
                body = self._read_body(response, count)
        if expired:  # signed addresses do
            del self._redirects[name]
            return self._fetch_once(name, begin, end, whole)
        if body is None:  # raised out here, since `stream_response` retries only the request
            raise _CutOffError
        return body, size

    def _read_body(self, response: Any, count: int) -> np.ndarray | None:
        """A response's body, or `None` if it was cut off or has not `count` bytes."""
        body = bytearray()
        try:
            for part in response.iter_bytes():
                body += part
                self.bytes_fetched += len(part)
                if len(body) > count:
                    return None
        except Exception:  # cut off; the client's helper can't retry from within
            return None
        return np.frombuffer(body, np.uint8) if len(body) == count else None


def _model_info(repo: str, revision: str | None, token: str | bool | None) -> Any:
    from huggingface_hub import HfApi, constants

    @hub_errors(repo, revision, token)
    def call() -> Any:
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        return HfApi(token=token).model_info(repo, revision=revision, timeout=timeout, files_metadata=True)

    try:
        return retry(call, 3, _model_info_delay)
    except CheckpointError:
        raise
    except Exception:
        raise RangesUnavailable from None  # the model may be cached; the download reports the error if not


def _delay(error: Exception, attempt: int) -> float | None:
    """Seconds before the next attempt; `None` to give up."""
    return FIRST_WAIT * 2 ** (attempt - 1) if isinstance(error, _CutOffError) else None


def _model_info_delay(error: Exception, attempt: int) -> float | None:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    is_transient = status == 429 or status >= 500 or type(error).__name__ in _CONNECTION_ERRORS
    return FIRST_WAIT * 2 ** (attempt - 1) if is_transient and not isinstance(error, CheckpointError) else None


def _parse_content_range(response: Any, begin: int, end: int, whole: bool) -> tuple[int, int]:
    """The number of bytes that a response declares, and the file's size."""
    if response.status_code == 200 and whole:
        size = response.headers.get("Content-Length", "")
        if size.isdigit() and int(size) <= end:
            return int(size), int(size)
    found = _CONTENT_RANGE.fullmatch(_content_range(response))
    if response.status_code != 206 or found is None:
        raise RangesUnavailable
    first, last, size = map(int, found.groups())
    if first != begin or last != min(end, size) - 1:
        raise RangesUnavailable
    return last + 1 - first, size


def _content_range(response: Any) -> str:
    return str(response.headers.get("Content-Range", ""))
