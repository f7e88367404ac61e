"""Fetch a model from the Hugging Face Hub, pinned to a commit, with huggingface_hub and its cache."""

import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_fingerprint.checkpoints.hub_options import NO_OPTIONS, HubOptions
from hf_fingerprint.checkpoints.hub_versions import cached_files, cached_folder
from hf_fingerprint.checkpoints.limits import megabytes
from hf_fingerprint.checkpoints.plain_http import warn_plaintext_hub_token
from hf_fingerprint.errors import CheckpointError


def fetch_snapshot(
    repo: str,
    revision: str | None,
    wanted: Callable[[list[str]], list[str]],
    access: HubOptions = NO_OPTIONS,
    max_bytes: int | None = None,
) -> tuple[Path, str]:
    """The snapshot folder of a commit with the wanted files: downloaded, or cached if the Hub can't be reached.

    Args:
        repo (`str`): `org/name`.
        revision (`str` or `None`): branch, tag or commit; `None` for the default branch.
        wanted (callable): from the names of all files in the repo to those to fetch.
        access ([`HubOptions`], *optional*): the token and the cache.
        max_bytes (`int`, *optional*): how large the wanted files may be together.

    Returns:
        `(folder, commit)`: the snapshot's folder and the commit's hash.

    Raises:
        [`CheckpointError`]: if the repo doesn't exist, isn't accessible to this account, or can't be reached and isn't
            cached; or if the files are larger.
    """
    from huggingface_hub import HfApi

    try:
        with hub_errors(repo, revision, access.token):
            sized = max_bytes is not None
            info = HfApi(token=access.token).model_info(repo, revision=revision, files_metadata=sized)
            names = wanted([sibling.rfilename for sibling in info.siblings or []])
            if max_bytes is not None:
                sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
                _check_sizes(format_repo(repo, revision), [sizes[name] for name in names], max_bytes)
            return download_files(repo, revision, str(info.sha), names, access), str(info.sha)
    except CheckpointError:
        raise
    except Exception as error:  # the client's transport errors share no base class across its versions
        return fetch_cached_snapshot(repo, revision, wanted, type(error).__name__, access)


def _check_sizes(at: str, sizes: Iterable[int | None], max_bytes: int) -> None:
    """Raises a [`CheckpointError`] if files on the Hub are larger together, or their sizes are unknown."""
    known = [max_bytes + 1 if size is None else size for size in sizes]
    if sum(known) > max_bytes:
        allowed = f"not known to have at most {megabytes(max_bytes)} MB, as is expected"
        raise CheckpointError(f"{at} is {allowed}: check that it is the right model, download it and give its folder.")


def download_files(
    repo: str, revision: str | None, commit: str, names: Iterable[str], access: HubOptions = NO_OPTIONS
) -> Path:
    """The snapshot folder of a commit, which `revision` named just before, with these files."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, **access.download))
    if folder.name != commit:  # the branch moved meanwhile
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=patterns, **access.download))
    return folder


@contextmanager
def hub_errors(repo: str, revision: str | None, token: str | bool | None = None) -> Iterator[None]:
    """Turns the Hub's permanent errors about `repo` at `revision` into [`CheckpointError`]; others pass through.

    Warns first if the token is about to go to the Hub over plain http.

    Raises:
        [`CheckpointError`]: for a repo or revision that does not exist or is not accessible to this account.
    """
    from huggingface_hub import constants, errors

    at, own = format_repo(repo, revision), isinstance(token, str)
    warn_plaintext_hub_token(token)
    try:
        yield
    except errors.HFValidationError:
        raise CheckpointError(f"{at} is neither a path here nor a possible Hub id: check the spelling.") from None
    except errors.LocalTokenNotFoundError:
        raise CheckpointError(
            f"{at} is to be read with the token of this machine, which has none: log in (hf auth login), or give the "
            f"token itself."
        ) from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: ask for access on its page ({constants.ENDPOINT}/{repo}) and log in with a token of "
            f"that account (hf auth login)."
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{at} does not exist: the repo has no such branch, tag or commit.") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo} is not on the Hub, or is private: check the id, and log in with a token that may read it "
            "(hf auth login)."
        ) from None
    except errors.HfHubHTTPError as error:
        if error.response is None or error.response.status_code != 401:
            raise
        which, remedy = ("given", "check it, or give none") if own else ("in use", "log in again (hf auth login)")
        raise CheckpointError(f"The Hub rejects the token {which} for {at}: {remedy}.") from None


def format_repo(repo: str, revision: str | None) -> str:
    """`org/name@revision`, or `org/name`."""
    return f"{repo}@{revision}" if revision else repo


def fetch_cached_snapshot(
    repo: str,
    revision: str | None,
    wanted: Callable[[list[str]], list[str]],
    reason: str,
    access: HubOptions = NO_OPTIONS,
) -> tuple[Path, str]:
    """Like [`fetch_snapshot`], from the local cache alone. `reason` says why the Hub is not queried."""
    try:
        complete, available = cached_files(repo, revision, access.cache_dir)
        names = wanted(list(available))
        folder = cached_folder(repo, revision, names if complete else None, access.cache_dir)
        return folder, folder.name
    except CheckpointError:
        raise
    except Exception:
        raise CheckpointError(
            f"{format_repo(repo, revision)} can't be fetched ({reason}) and is not complete in the local cache: check "
            f"the connection."
        ) from None
