"""The vault in a private dataset repo of its own, encrypted, shared by those who trace and those who issue.

The repo holds one file, `vault.age` (see [`pack_vault`]), and a short README. Pushing first merges what is there, so
no issuer's records are lost; a push by somebody else at the same moment is noticed by the Hub (`parent_commit`) and
merged in turn. Whatever is cut off is mended by doing the same again: the vault changes in one transaction, the repo
in one commit, and a commit that was made already holds what a second push would bring.

What leaves this machine is age ciphertext, its size and the repo's name. A removed issuer, or a leaked identity, still
opens the repo's earlier commits.
"""

from dataclasses import dataclass
from pathlib import Path

from hf_fingerprint.checkpoints.limits import MAX_PACK, megabytes
from hf_fingerprint.errors import HubError, VaultError
from hf_fingerprint.hub.api import translate_errors, with_retries
from hf_fingerprint.retrying import retry
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.merging import MergeReport, merge, merge_with_union
from hf_fingerprint.vault.packing import open_pack, pack_snapshot
from hf_fingerprint.vault.sealing import AgeIdentity
from hf_fingerprint.vault.snapshots import Snapshot, take_snapshot
from hf_fingerprint.vault.store import Vault


VAULT_FILE = "vault.age"
README = "README.md"
MAX_ATTEMPTS = 6
_VAULT_FILES = frozenset([VAULT_FILE, README, ".gitattributes"])
_README_TEXT = b"""---
viewer: false
---
# Encrypted

`vault.age` belongs to hf-fingerprint: `hf-fingerprint vault pull` and `vault push` read and write it. Keep this repo
private, and keep nothing else in it.
"""


@dataclass(frozen=True)
class PushedVault:
    """Where a vault was pushed.

    Attributes:
        repo (`str`): `org/name`.
        revision (`str`): the commit that holds it.
        new (`bool`): whether that commit was made now; `False` if the repo held all of it already.
        merged ([`MergeReport`]): what came from the repo.
    """

    repo: str
    revision: str
    new: bool
    merged: MergeReport


@dataclass(frozen=True)
class _RepoState:
    """The repo at one moment."""

    revision: str
    files: frozenset[str]


def push_vault(vault: Vault, repo: str, age_identity: AgeIdentity | None = None) -> PushedVault:
    """Pushes a vault to its repo, which is made (private) if there is none, once what is there is merged.

    Args:
        vault ([`Vault`]): the vault.
        repo (`str`): `org/name`, a private dataset repo that holds nothing else.
        age_identity ([`AgeIdentity`], *optional*): the tracing identity or an issuer's key, to open the vault that is there; by
            default the vault's own identity, if it is unlocked. After a rotation, the old identity.

    Raises:
        [`HubError`]: if the repo is public, is a copy's or holds other files, or the Hub refuses.
        [`VaultError`]: if the vault there doesn't open or is none, or a base or record there contradicts this vault's:
            what does not is merged, and the repo is left as it is. Any other row there that can't be used is named in
            the report, and not pushed again.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    if age_identity is None and vault.unlocked:
        age_identity = vault.age_identity()
    api, merged = HfApi(library_name="hf-fingerprint"), MergeReport()
    _check_not_variant(take_snapshot(vault), repo)

    def attempt() -> PushedVault:
        nonlocal merged
        try:
            state = with_retries(lambda: _inspect_repo(repo))
        except RepositoryNotFoundError:
            with_retries(lambda: api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
            state = with_retries(lambda: _inspect_repo(repo))
        if VAULT_FILE in state.files:
            remote = _fetch_snapshot(repo, state, age_identity)
            report, snapshot = merge_with_union(vault, remote, age_identity, repo)
            merged += report
            _check_replaceable(snapshot.faults, repo)
        else:
            remote, snapshot = None, take_snapshot(vault)
            merged += MergeReport(unusable=snapshot.faults)
        _check_not_variant(snapshot, repo)
        if remote == snapshot and not remote.faults:
            return PushedVault(repo, state.revision, False, merged)
        operations = [CommitOperationAdd(VAULT_FILE, pack_snapshot(snapshot))]
        if README not in state.files:
            operations.append(CommitOperationAdd(README, _README_TEXT))
        commit = api.create_commit(
            repo, operations, commit_message="Update", repo_type="dataset", parent_commit=state.revision
        )
        return PushedVault(repo, commit.oid, True, merged)

    with translate_errors(repo):
        return retry(attempt, MAX_ATTEMPTS, _delay_after_conflict)


def _delay_after_conflict(error: Exception, attempt: int) -> float | None:
    """No delay if another machine committed first; `None`, so no further attempt, after any other error."""
    from huggingface_hub.errors import HfHubHTTPError

    return 0.0 if isinstance(error, HfHubHTTPError) and error.response.status_code == 412 else None


def pull_vault(
    repo: str, folder: str | Path, age_identity: AgeIdentity, public_key: str | None = None
) -> tuple[Vault, MergeReport]:
    """Brings the vault of a repo into a folder: a new vault, or what an existing one lacks.

    Args:
        repo (`str`): `org/name`.
        folder (`str` or `Path`): the vault's folder, there or not.
        age_identity ([`AgeIdentity`]): the tracing identity, or an issuer's key.
        public_key (`str`, *optional*): the tracing identity's public key, where it is known: everybody who may write
            to the repo could put another vault there, to whose identity a new folder would then seal.

    Returns:
        `(vault, report)`

    Raises:
        [`HubError`]: if the repo is public, holds no vault, or the Hub refuses.
        [`VaultError`]: if the vault there doesn't open or can't be merged.
    """
    folder = Path(folder)
    with translate_errors(repo):
        state = with_retries(lambda: _inspect_repo(repo))
        if VAULT_FILE not in state.files:
            raise HubError(f"{repo} holds no vault: push one with `hf-fingerprint vault push {repo}`.")
        remote = _fetch_snapshot(repo, state, age_identity)
    _check_not_variant(remote, repo)
    if public_key is not None and public_key != remote.public_key:
        raise VaultError(
            f"The vault in {repo} is sealed to {remote.public_key} and not to {public_key}: don't use it."
        )
    vault = Vault(folder) if (folder / DATABASE).is_file() else Vault.create_empty(folder, remote.public_key)
    return vault, merge(vault, remote, age_identity, repo)


def _inspect_repo(repo: str) -> _RepoState:
    from huggingface_hub import HfApi

    info = HfApi(library_name="hf-fingerprint").dataset_info(repo)
    if not info.private:
        raise HubError(f"{repo} is public, and a vault belongs into a private repo: make it private, or take another.")
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    if files - _VAULT_FILES:
        raise HubError(
            f"{repo} holds {sorted(files - _VAULT_FILES)[0]}, and a vault's repo holds nothing else: take another repo."
        )
    return _RepoState(str(info.sha), files)


def _fetch_snapshot(repo: str, state: _RepoState, age_identity: AgeIdentity | None) -> Snapshot:
    """The vault in a repo, through memory, if it is not too large for that."""
    from huggingface_hub import HfFileSystem

    def read() -> bytes:
        files = HfFileSystem(skip_instance_cache=True)
        size = files.info(path)["size"]
        if size > MAX_PACK:
            raise _too_large(repo, size)
        with files.open(path, "rb", block_size=0) as stream:
            return bytes(stream.read(MAX_PACK + 1))

    if age_identity is None:
        raise HubError(f"{repo} holds a vault already: give the tracing identity or an issuer's key to merge with it.")
    path = f"datasets/{repo}@{state.revision}/{VAULT_FILE}"
    content = with_retries(read)
    if len(content) > MAX_PACK:
        raise _too_large(repo, len(content))
    return open_pack(content, age_identity, repo)


def _too_large(repo: str, size: int) -> HubError:
    return HubError(
        f"The vault in {repo} has {megabytes(size, round_up=True)} MB, and vaults of at most {megabytes(MAX_PACK)} MB are "
        f"read: restore an earlier commit of it."
    )


def _check_not_variant(snapshot: Snapshot, repo: str) -> None:
    if any(row.repo.lower() == repo.lower() for row in snapshot.publications.values()):
        raise HubError(f"{repo} is a copy's repo, where no key belongs: take another one for the vault.")


def _check_replaceable(contradictions: tuple[Fault, ...], repo: str) -> None:
    """What a push would drop from the repo, and that no one can tell is wrong, stays there."""
    first = next((fault for fault in contradictions if fault.table in ("bases", "questions", "copies")), None)
    if first is not None:
        more = f" (and {len(contradictions) - 1} more rows)" if len(contradictions) > 1 else ""
        raise VaultError(f"{repo} is left as it is, what it adds is merged here. {first.describe()}{more}.")
