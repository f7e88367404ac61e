"""Download a suspect's files from the Hub into the cache, within a byte limit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.hub_client import download_files, format_repo, hub_errors
from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.hub_versions import cached_files, cached_folder, progress_bar_options
from hf_fingerprint.checkpoints.limits import MAX_INDEX, megabytes, read_bounded
from hf_fingerprint.checkpoints.naming import HubId
from hf_fingerprint.errors import CheckpointError


_OVERSIZED = "longer than the size on the Hub: not read"
NOT_CACHED = "not in the local cache, and the Hub can't be reached: check the connection"


class OversizedDownload(Exception):
    """A download is longer than the file's size on the Hub."""


class HubFiles:
    """The files of one commit; from the local cache alone if the Hub can't be reached.

    Args:
        hub_id ([`HubId`]): the model's folder in a repo, and the revision.
        max_bytes (`int` or `None`): maximum number of bytes to fetch, over all files.
        access ([`HubOptions`], *optional*): the token and the cache.

    Attributes:
        hub_id ([`HubId`]): the same with the current name of the repo, which differs if it was renamed.
        commit (`str`): the commit's hash.
        sizes (`dict[str, int | None]`): all files of the model's folder with their sizes in bytes, `None` where
            unknown.
        folder (`Path`): the model's folder, with the fetched files.
        bytes_left (`int` or `None`): number of bytes that may still be fetched.

    Raises:
        [`CheckpointError`]: if there is no such repo or revision, it is not accessible to this account, or it can't be
            reached and is not in the cache.
    """

    def __init__(self, hub_id: HubId, max_bytes: int | None, access: HubOptions = NO_OPTIONS):
        from huggingface_hub import HfApi

        repo, revision = hub_id.repo, hub_id.revision
        self._display_name, self._online, self._access = format_repo(repo, revision), True, access
        self.bytes_left = self._max_bytes = max_bytes
        self.hub_id = hub_id
        try:
            with hub_errors(repo, revision, access.token):
                info = HfApi(token=access.token).model_info(repo, revision=revision, files_metadata=True)
            self.hub_id, self.commit = hub_id._replace(repo=str(info.id)), str(info.sha)
            sizes: dict[str, int | None] = {each.rfilename: each.size for each in info.siblings or []}
            self.folder = Path()
        except CheckpointError:
            raise
        except Exception as error:  # the client's transport errors share no base class across its versions
            sizes = self._from_cache(repo, type(error).__name__)
        self.sizes = {name: sizes[hub_id.path_in_repo(name)] for name in hub_id.names_in_folder(sizes)}

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
            repo, revision = self.hub_id.repo, self.hub_id.revision
            with self._fetch_errors(revision):
                paths = map(self.hub_id.path_in_repo, names)
                self.folder = self._model_folder(download_files(repo, revision, self.commit, paths, self._access))

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
                options = self._access.download | progress_bar_options(counter)
                path = self.hub_id.path_in_repo(name)
                hf_hub_download(self.hub_id.repo, path, revision=self.commit, **options)

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

        if name not in self.sizes:
            return True
        repo, path, cache_dir = self.hub_id.repo, self.hub_id.path_in_repo(name), self._access.cache_dir
        return isinstance(try_to_load_from_cache(repo, path, cache_dir, revision=self.commit), str)

    def _model_folder(self, snapshot: Path) -> Path:
        return snapshot if self.hub_id.subfolder is None else snapshot / self.hub_id.subfolder

    def _from_cache(self, repo: str, reason: str) -> dict[str, int | None]:
        revision, cache_dir = self.hub_id.revision, self._access.cache_dir
        try:
            _, sizes = cached_files(repo, revision, cache_dir)
            snapshot = cached_folder(repo, revision, [], cache_dir)
        except Exception:
            raise CheckpointError(
                f"{self._display_name} can't be fetched ({reason}) and is not in the local cache: check the "
                f"connection."
            ) from None
        self._online = False
        self.folder, self.commit = self._model_folder(snapshot), snapshot.name
        return sizes

    @contextmanager
    def _fetch_errors(self, revision: str | None) -> Iterator[None]:
        try:
            with hub_errors(self.hub_id.repo, revision, self._access.token):
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
