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
from hf_fingerprint.hub.api import patiently, refusals
from hf_fingerprint.vault.database import DATABASE
from hf_fingerprint.vault.faults import Fault
from hf_fingerprint.vault.merging import MergeReport, merge, merge_both
from hf_fingerprint.vault.packing import open_pack, pack_snapshot
from hf_fingerprint.vault.sealing import Opener
from hf_fingerprint.vault.snapshots import Snapshot, take_snapshot
from hf_fingerprint.vault.store import Vault


VAULT = "vault.age"
README = "README.md"
TRIES = 6
_OURS = frozenset([VAULT, README, ".gitattributes"])
_TEXT = b"""---
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
class _State:
    """The repo at one moment."""

    revision: str
    files: frozenset[str]


def push_vault(vault: Vault, repo: str, opener: Opener | None = None) -> PushedVault:
    """Pushes a vault to its repo, which is made (private) if there is none, once what is there is merged.

    Args:
        vault ([`Vault`]): the vault.
        repo (`str`): `org/name`, a private dataset repo that holds nothing else.
        opener ([`Opener`], *optional*): the tracing identity or an issuer's key, to open the vault that is there; by
            default the vault's own identity, if it is unlocked. After a rotation, the old identity.

    Raises:
        [`HubError`]: if the repo is public, is a copy's or holds other files, or the Hub refuses.
        [`VaultError`]: if the vault there doesn't open or is none, or a base or record there contradicts this vault's:
            what does not is merged, and the repo is left as it is. Any other row there that can't be used is named in
            the report, and not pushed again.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    if opener is None and vault.unlocked:
        opener = vault.opener()
    api, merged = HfApi(library_name="hf-fingerprint"), MergeReport()
    _refuse_variants(take_snapshot(vault), repo)
    with refusals(repo):
        for number in range(TRIES):
            try:
                state = patiently(lambda: _look(repo))
            except RepositoryNotFoundError:
                patiently(lambda: api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True))
                state = patiently(lambda: _look(repo))
            if VAULT in state.files:
                remote = _fetch(repo, state, opener)
                report, snapshot = merge_both(vault, remote, opener, repo)
                merged += report
                _refuse_to_replace(snapshot.faults, repo)
            else:
                remote, snapshot = None, take_snapshot(vault)
                merged += MergeReport(unusable=snapshot.faults)
            _refuse_variants(snapshot, repo)
            if remote == snapshot and not remote.faults:
                return PushedVault(repo, state.revision, False, merged)
            operations = [CommitOperationAdd(VAULT, pack_snapshot(snapshot))]
            if README not in state.files:
                operations.append(CommitOperationAdd(README, _TEXT))
            try:
                commit = api.create_commit(
                    repo,
                    operations,
                    commit_message="Update",
                    repo_type="dataset",
                    parent_commit=state.revision,
                )
                return PushedVault(repo, commit.oid, True, merged)
            except HfHubHTTPError as error:
                if error.response.status_code != 412 or number + 1 == TRIES:
                    raise
    raise AssertionError("the last try returns or raises")


def pull_vault(
    repo: str, folder: str | Path, opener: Opener, public_key: str | None = None
) -> tuple[Vault, MergeReport]:
    """Brings the vault of a repo into a folder: a new vault, or what an existing one lacks.

    Args:
        repo (`str`): `org/name`.
        folder (`str` or `Path`): the vault's folder, there or not.
        opener ([`Opener`]): the tracing identity, or an issuer's key.
        public_key (`str`, *optional*): the tracing identity's public key, where it is known: everybody who may write
            to the repo could put another vault there, to whose identity a new folder would then seal.

    Returns:
        `(vault, report)`

    Raises:
        [`HubError`]: if the repo is public, holds no vault, or the Hub refuses.
        [`VaultError`]: if the vault there doesn't open or can't be merged.
    """
    folder = Path(folder)
    with refusals(repo):
        state = patiently(lambda: _look(repo))
        if VAULT not in state.files:
            raise HubError(f"{repo} holds no vault: push one with `hf-fingerprint vault push {repo}`.")
        remote = _fetch(repo, state, opener)
    _refuse_variants(remote, repo)
    if public_key is not None and public_key != remote.public_key:
        raise VaultError(
            f"The vault in {repo} is sealed to {remote.public_key} and not to {public_key}: don't use it."
        )
    vault = Vault(folder) if (folder / DATABASE).is_file() else Vault.beside_identity(folder, remote.public_key)
    return vault, merge(vault, remote, opener, repo)


def _look(repo: str) -> _State:
    from huggingface_hub import HfApi

    info = HfApi(library_name="hf-fingerprint").dataset_info(repo)
    if not info.private:
        raise HubError(f"{repo} is public, and a vault belongs into a private repo: make it private, or take another.")
    files = frozenset(sibling.rfilename for sibling in info.siblings or [])
    if files - _OURS:
        raise HubError(
            f"{repo} holds {sorted(files - _OURS)[0]}, and a vault's repo holds nothing else: take another repo."
        )
    return _State(str(info.sha), files)


def _fetch(repo: str, state: _State, opener: Opener | None) -> Snapshot:
    """The vault in a repo, through memory, if it is not too large for that."""
    from huggingface_hub import HfFileSystem

    def read() -> bytes:
        files = HfFileSystem(skip_instance_cache=True)
        size = files.info(path)["size"]
        if size > MAX_PACK:
            raise _too_large(repo, size)
        with files.open(path, "rb", block_size=0) as stream:
            return bytes(stream.read(MAX_PACK + 1))

    if opener is None:
        raise HubError(f"{repo} holds a vault already: give the tracing identity or an issuer's key to merge with it.")
    path = f"datasets/{repo}@{state.revision}/{VAULT}"
    content = patiently(read)
    if len(content) > MAX_PACK:
        raise _too_large(repo, len(content))
    return open_pack(content, opener, repo)


def _too_large(repo: str, size: int) -> HubError:
    return HubError(
        f"The vault in {repo} has {megabytes(size, up=True)} MB, and vaults of at most {megabytes(MAX_PACK)} MB are "
        f"read: restore an earlier commit of it."
    )


def _refuse_variants(snapshot: Snapshot, repo: str) -> None:
    if any(row.repo.lower() == repo.lower() for row in snapshot.publications.values()):
        raise HubError(f"{repo} is a copy's repo, where no key belongs: take another one for the vault.")


def _refuse_to_replace(contradictions: tuple[Fault, ...], repo: str) -> None:
    """What a push would drop from the repo, and that no one can tell is wrong, stays there."""
    first = next((fault for fault in contradictions if fault.table in ("bases", "questions", "copies")), None)
    if first is not None:
        more = f" (and {len(contradictions) - 1} more rows)" if len(contradictions) > 1 else ""
        raise VaultError(f"{repo} is left as it is, what it adds is merged here. {first.describe()}{more}.")
