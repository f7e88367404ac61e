"""A model from the Hugging Face Hub, pinned to a commit, through the real client and its cache."""

import glob
from collections.abc import Callable
from pathlib import Path

from hf_fingerprint.errors import CheckpointError


def fetch_snapshot(repo: str, revision: str | None, wanted: Callable[[list[str]], list[str]]) -> tuple[Path, str]:
    """Downloads the files of one commit that are wanted, or finds them in the cache when the Hub can't be reached.

    Args:
        repo (`str`): `org/name`.
        revision (`str` or `None`): branch, tag or commit; `None` for the default branch.
        wanted (callable): from the names of all files of the repo, those to fetch.

    Returns:
        `(folder, commit)`: the snapshot's folder and the commit's hash.

    Raises:
        [`CheckpointError`]: if the repo doesn't exist, isn't open to this account, or can't be reached and isn't
        cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{repo}@{revision}" if revision else repo
    try:
        info = HfApi().model_info(repo, revision=revision)
        names = wanted([sibling.rfilename for sibling in info.siblings or []])
        commit = str(info.sha)
        folder = snapshot_download(repo, revision=commit, allow_patterns=[glob.escape(name) for name in names])
        return Path(folder), commit
    except CheckpointError:
        raise
    except GatedRepoError:
        raise CheckpointError(
            f"{repo} is gated: ask for access on its page and log in with a token of that account (hf auth login)."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{at} does not exist: the repo has no such branch, tag or commit.") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo} is not on the Hub, or is private: check the id, and log in with a token that may read it (hf "
            f"auth login)."
        ) from None
    except Exception as unreachable:  # the client's transport errors have no common class over its versions
        try:
            folder = snapshot_download(repo, revision=revision, local_files_only=True)
        except Exception:
            raise CheckpointError(
                f"{at} can't be fetched ({type(unreachable).__name__}) and is not in the local cache: check the "
                f"connection."
            ) from None
        return Path(folder), Path(folder).name
