"""What the Hub's client does in one way from version 1 on and in another before."""

import inspect
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any


_BUSY = (429, 500, 502, 503, 504)


def cached_files(repo: str, revision: str | None) -> tuple[bool, dict[str, int | None]]:
    """The files of a commit that the local cache knows of, with their sizes, without asking the Hub.

    Returns:
        `(whole, sizes)`: whether these are all that the repo has; where nothing but single files was ever fetched, or
        by a client that keeps no lists, it is those that are there.

    Raises:
        `Exception`: the client's own, if nothing of it is in the cache.
    """
    import huggingface_hub

    listed = getattr(huggingface_hub, "get_cached_repo_tree", None)
    if listed is not None:
        with suppress(Exception):  # no list was kept
            return True, {file.path: file.size for file in listed(repo, revision=revision)}
    folder = cached_folder(repo, revision)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return False, {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def cached_folder(repo: str, revision: str | None) -> Path:
    """The folder of a commit in the local cache, whole or not."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, local_files_only=True))


@contextmanager
def stream(url: str, retries: int, first_wait: float, **options: Any) -> Iterator[Any]:
    """An answer whose body is still to come, by its `iter_bytes()`; asked for again while the Hub is busy.

    Args:
        url (`str`): what is asked, by GET.
        retries (`int`): how often it is asked again at most.
        first_wait (`float`): seconds before that, twice as long each time.
        options: of the client's HTTP library: `headers`, `timeout`.
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
    """The option by which a download of one file tells a progress bar how much came; none in older clients, which end
    a download that is longer than it was said to be only when it is there."""
    from huggingface_hub import hf_hub_download

    known = "tqdm_class" in inspect.signature(hf_hub_download).parameters
    return {"tqdm_class": progress_bar} if known else {}
