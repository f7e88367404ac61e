"""Download a suspect's files from the Hub into the cache, within a byte limit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.hub_client import download_files, format_repo, hub_errors
from hf_fingerprint.checkpoints.hub_versions import cached_files, cached_folder, progress_bar_options
from hf_fingerprint.checkpoints.limits import MAX_INDEX, megabytes, read_bounded
from hf_fingerprint.errors import CheckpointError


_OVERSIZED = "longer than the size on the Hub: not read"
NOT_CACHED = "not in the local cache, and the Hub can't be reached: check the connection"


class OversizedDownload(Exception):
    """A download is longer than the file's size on the Hub."""


class HubFiles:
    """The files of one commit; from the local cache alone if the Hub can't be reached.

    Args:
        repo (`str`): `org/name`.
        revision (`str` or `None`): branch, tag or commit; `None` for the default branch.
        max_bytes (`int` or `None`): maximum number of bytes to fetch, over all files.

    Attributes:
        repo (`str`): current name of the repo, which differs from the given one if it was renamed.
        commit (`str`): the commit's hash.
        sizes (`dict[str, int | None]`): all files with their sizes in bytes, `None` where unknown.
        folder (`Path`): folder of the fetched files.
        bytes_left (`int` or `None`): number of bytes that may still be fetched.

    Raises:
        [`CheckpointError`]: if there is no such repo or revision, it is not accessible to this account, or it can't be
            reached and is not in the cache.
    """

    def __init__(self, repo: str, revision: str | None, max_bytes: int | None):
        from huggingface_hub import HfApi

        self._display_name, self._revision, self._online = format_repo(repo, revision), revision, True
        self.bytes_left = self._max_bytes = max_bytes
        try:
            with hub_errors(repo, revision):
                info = HfApi().model_info(repo, revision=revision, files_metadata=True)
            self.repo, self.commit = str(info.id), str(info.sha)
            self.sizes = {each.rfilename: each.size for each in info.siblings or []}
            self.folder = Path()
        except CheckpointError:
            raise
        except Exception as error:  # the client's transport errors share no base class across its versions
            self._from_cache(repo, type(error).__name__)

    def fetch_problem(self, names: Iterable[str]) -> str | None:
        """Why these files can't be fetched, or `None` if they can."""
        wanted = [name for name in names if not self._is_cached(name)]
        if not self._online:
            return NOT_CACHED if wanted else None
        if self.bytes_left is None or not wanted:
            return None
        sizes = [self.sizes[name] for name in wanted]
        allowed = f"--max-mb allows {megabytes(self._max_bytes or 0)} MB"
        if self.bytes_left != self._max_bytes:
            allowed += f", of which {megabytes(self.bytes_left)} MB are left"
        if None in sizes:
            return f"has no size on the Hub, {allowed}"
        needed = sum(size for size in sizes if size is not None)
        return None if needed <= self.bytes_left else f"needs {megabytes(needed, round_up=True)} MB, {allowed}"

    def fetch_small(self, names: list[str]) -> None:
        """Downloads configurations and indexes, and sets `folder`."""
        if self._online:
            self._spend(names)
            with self._fetch_errors(self._revision):
                self.folder = download_files(self.repo, self._revision, self.commit, names)

    def fetch(self, names: Iterable[str]) -> None:
        """Downloads files for which [`fetch_problem`] returns `None`.

        Raises:
            [`OversizedDownload`]: if one is longer than its size on the Hub.
            [`CheckpointError`]: if one can't be fetched.
        """
        from huggingface_hub import hf_hub_download

        for name in names:
            if self._is_cached(name):
                continue
            self._spend([name])
            with self._fetch_errors(self.commit):
                counter = None if self.bytes_left is None else _bounded_progress_bar(self.sizes[name] or 0)
                hf_hub_download(self.repo, name, revision=self.commit, **progress_bar_options(counter))

    def read_small(self, name: str, fetched: Iterable[str]) -> bytes:
        """Content of a small file.

        Raises:
            [`ValueError`]: with the reason, if it was not fetched.
        """
        path, too_large = self.folder / name, f"is larger than an index may be ({MAX_INDEX} bytes)"
        if name not in fetched or not path.is_file():
            raise ValueError(self.fetch_problem([name]) or too_large)
        try:
            return read_bounded(path, MAX_INDEX, "an index of weight files")
        except (CheckpointError, OSError):
            raise ValueError(too_large) from None

    def _spend(self, names: Iterable[str]) -> None:
        if self.bytes_left is not None:  # a name that is not in the repo counts as cached
            self.bytes_left -= sum(self.sizes[name] or 0 for name in names if not self._is_cached(name))

    def _is_cached(self, name: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return name not in self.sizes or isinstance(try_to_load_from_cache(self.repo, name, revision=self.commit), str)

    def _from_cache(self, repo: str, reason: str) -> None:
        try:
            _, self.sizes = cached_files(repo, self._revision)
            self.folder = cached_folder(repo, self._revision, [])
        except Exception:
            raise CheckpointError(
                f"{self._display_name} can't be fetched ({reason}) and is not in the local cache: check the "
                f"connection."
            ) from None
        self._online = False
        self.repo, self.commit = repo, self.folder.name

    @contextmanager
    def _fetch_errors(self, revision: str | None) -> Iterator[None]:
        try:
            with hub_errors(self.repo, revision):
                yield
        except (CheckpointError, OversizedDownload):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self._display_name} can't be fetched ({type(error).__name__}): check the connection and run the "
                f"command again."
            ) from None


def _bounded_progress_bar(size: int) -> type:
    """A progress bar class that aborts a download once it exceeds `size` bytes."""
    from huggingface_hub.utils import tqdm

    class Counter(tqdm):
        received = 0

        def __init__(self, *args: Any, **options: Any):
            if (options.get("total") or 0) > size:
                raise OversizedDownload(_OVERSIZED)
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.received > size:
                raise OversizedDownload(_OVERSIZED)
            return super().update(n)

    return Counter
