"""Shares a vault, encrypted, through a private dataset repo between machines that issue and machines that trace.

The repo holds one file, `vault.age` (see [`pack_snapshot`]), and a README. A push first merges the vault in the repo.
If another machine pushes at the same time, the Hub rejects the second commit (`parent_commit`), and the push is
repeated. The vault changes in one transaction and the repo in one commit. Only age ciphertext leaves this machine. A
removed issuer, or anybody with a leaked identity, can still open the repo's earlier commits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """The result of a push.

    Attributes:
        repo (`str`): the repo, `org/name`.
        revision (`str`): the commit that holds the vault.
        new (`bool`): whether the push made a commit; `False` if the repo was up to date.
        merged ([`MergeReport`]): what was merged from the repo.
    """

    repo: str
    revision: str
    new: bool
    merged: MergeReport

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return vars(self) | {"merged": self.merged.to_dict()}


class _RepoState(NamedTuple):
    """A revision of the repo and the files in it."""

    revision: str
    files: frozenset[str]


def push_vault(vault: Vault, repo: str, age_identity: AgeIdentity | None = None) -> PushedVault:
    """Merges the vault in a repo into this vault, and pushes the union. A missing repo is created, private.

    Args:
        vault ([`Vault`]): the vault.
        repo (`str`): a private dataset repo, `org/name`, that holds nothing else.
        age_identity ([`AgeIdentity`], *optional*): the tracing identity or an issuer's key, which opens the vault in
            the repo. Defaults to this vault's identity, if it is unlocked. After a rotation, give the old identity.

    Raises:
        [`HubError`]: if the repo is public, is a variant repo or holds other files, or the Hub refuses the request.
        [`VaultError`]: if the file in the repo is not a vault or can't be opened, or if a base or record in it
            contradicts this vault. In the last case the other rows are merged, and the repo is not changed. Other rows
            that can't be used are listed in the report and are not pushed again.
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
    """Merges the vault in a repo into the vault in a folder, which is created if it is missing.

    Args:
        repo (`str`): the repo, `org/name`.
        folder (`str` or `Path`): the folder of the vault.
        age_identity ([`AgeIdentity`]): the tracing identity, or an issuer's key.
        public_key (`str`, *optional*): the expected public key of the tracing identity. Give it for a new folder:
            anybody who can write to the repo could replace the vault by one that is sealed to another identity.

    Returns:
        `(vault, report)`

    Raises:
        [`HubError`]: if the repo is public or holds no vault, or the Hub refuses the request.
        [`VaultError`]: if the vault in the repo can't be opened or merged.
    """
    folder = Path(folder)
    with translate_errors(repo):
        state = with_retries(lambda: _inspect_repo(repo))
        if VAULT_FILE not in state.files:
            raise HubError(f"{repo} holds no vault: push one with `hf-fingerprint vault push {repo}`.")
        remote = _fetch_snapshot(repo, state, age_identity)
    _check_not_variant(remote, repo)
    if public_key is not None and public_key != remote.public_key:
        sealed = f"sealed to {remote.public_key} and not to {public_key}"
        raise VaultError(f"The vault in {repo} is {sealed}: don't use it.")
    vault = Vault(folder) if (folder / DATABASE).is_file() else Vault.create_empty(folder, remote.public_key)
    return vault, merge(vault, remote, age_identity, repo)


def _inspect_repo(repo: str) -> _RepoState:
    from huggingface_hub import HfApi

    info = HfApi(library_name="hf-fingerprint").dataset_info(repo)
    if not info.private:
        required = "a vault must be in a private repo"
        raise HubError(f"{repo} is public, and {required}: make it private or choose another repo.")
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    if files - _VAULT_FILES:
        other = min(files - _VAULT_FILES)
        raise HubError(f"{repo} holds {other}, and the repo of a vault must hold nothing else: choose another repo.")
    return _RepoState(str(info.sha), files)


def _fetch_snapshot(repo: str, state: _RepoState, age_identity: AgeIdentity | None) -> Snapshot:
    """Downloads the vault in a repo into memory."""
    from huggingface_hub import HfFileSystem

    def read() -> bytes:
        files = HfFileSystem(skip_instance_cache=True)
        size = files.info(path)["size"]
        if size > MAX_PACK:
            raise _too_large(repo, size)
        with files.open(path, "rb", block_size=0) as stream:
            return bytes(stream.read(MAX_PACK + 1))

    if age_identity is None:
        raise HubError(f"{repo} already holds a vault: give the tracing identity or an issuer's key, to merge it.")
    path = f"datasets/{repo}@{state.revision}/{VAULT_FILE}"
    content = with_retries(read)
    if len(content) > MAX_PACK:
        raise _too_large(repo, len(content))
    return open_pack(content, age_identity, repo)


def _too_large(repo: str, size: int) -> HubError:
    limit = f"above the limit of {megabytes(MAX_PACK)} MB"
    return HubError(
        f"The vault in {repo} has {megabytes(size, round_up=True)} MB, {limit}: restore an earlier commit."
    )


def _check_not_variant(snapshot: Snapshot, repo: str) -> None:
    if any(row.repo.lower() == repo.lower() for row in snapshot.publications.values()):
        raise HubError(f"{repo} is a variant repo, where no key belongs: choose another repo for the vault.")


def _check_replaceable(contradictions: tuple[Fault, ...], repo: str) -> None:
    """Refuses to replace a vault in the repo that holds rows which contradict this vault."""
    first = next((fault for fault in contradictions if fault.table in ("bases", "questions", "copies")), None)
    if first is not None:
        more = f" (and {len(contradictions) - 1} more rows)" if len(contradictions) > 1 else ""
        merged = "its other rows are merged into this vault"
        raise VaultError(f"{repo} is not changed; {merged}. {first.describe()}{more}.")
