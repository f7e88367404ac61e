"""Differences between huggingface_hub 1.x and earlier versions."""

import glob
import inspect
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any


_BUSY = (429, 500, 502, 503, 504)


def cached_files(
    repo: str, revision: str | None, cache_dir: str | Path | None = None
) -> tuple[bool, dict[str, int | None]]:
    """The files of a commit in the local cache with their sizes, without querying the Hub.

    Returns:
        `(complete, sizes)`: whether `sizes` lists all files of the repo. Without a cached list of the repo, as older
        clients leave it, `sizes` holds the files that happen to be cached.

    Raises:
        `Exception`: the client's own, if nothing of the repo is cached.
    """
    import huggingface_hub

    listed = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if listed is not None:
        with suppress(Exception):  # no list was kept
            return True, {file.path: file.size for file in listed(repo, revision=revision, cache_dir=cache_dir)}
    folder = cached_folder(repo, revision, cache_dir=cache_dir)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return False, {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def cached_folder(
    repo: str, revision: str | None, names: Iterable[str] | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a commit in the local cache, complete or not; an error if it is known to lack one of `names`."""
    from huggingface_hub import snapshot_download

    patterns = None if names is None else [glob.escape(name) for name in names]
    options: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "cache_dir": cache_dir}
    return Path(snapshot_download(repo, local_files_only=True, **options))


@contextmanager
def stream_response(url: str, retries: int, first_wait: float, **options: Any) -> Iterator[Any]:
    """Yields the streaming response of a GET request, retried while the Hub is busy. Read it with `iter_bytes()`.

    Args:
        url (`str`): the address.
        retries (`int`): maximum number of retries.
        first_wait (`float`): seconds before the first retry; doubles with each one.
        options: `headers` and `timeout`, passed to the HTTP library.
    """
    from huggingface_hub import utils

    options |= {"max_retries": retries, "base_wait_time": first_wait}
    if hasattr(utils, "http_stream_backoff"):
        with utils.http_stream_backoff("GET", url, **options) as response:
            yield response
        return
    options |= {"stream": True, "allow_redirects": True, "retry_on_status_codes": _BUSY}
    plain: Any = utils.http_backoff("GET", url, **options)
    with closing(plain):
        plain.iter_bytes = lambda: plain.iter_content(1 << 16)
        yield plain


def progress_bar_options(progress_bar: type | None) -> dict[str, Any]:
    """Options of `hf_hub_download` that set its progress bar. Empty for older clients, which detect an oversized
    download only at its end."""
    from huggingface_hub import hf_hub_download

    known = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    return {"tqdm_class": progress_bar} if known else {}
