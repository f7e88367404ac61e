"""One variant repo for each recipient: recorded first, then pushed in one commit, then confirmed.

A crash, a refusal or a broken connection at any point is mended by doing the same again: the copy that is there is
pushed, a commit that was made is found by the hashes of its files, and nobody is marked or recorded twice.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub.card import CONFIG, README, make_card, mended_config
from hf_fingerprint.hub.client import patiently, refusals
from hf_fingerprint.hub.variants import Assignment, PublishedCopy, Terms
from hf_fingerprint.issuing import IssuedCopy, Issuer
from hf_fingerprint.registration import Settings, find_base, weights_hash
from hf_fingerprint.vault import (
    Base,
    Publication,
    Vault,
    begin_publication,
    check_recipient,
    confirm_publication,
    hold,
    publications,
)


if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.hf_api import ModelInfo


_NOT_OURS = frozenset([".gitattributes"])


class Publisher:
    """Pushes copies to their repos, one at a time; never holds two on the disk.

    Args:
        vault ([`Vault`]): the vault.
        terms ([`Terms`], *optional*): how.
        work (`Path`, *optional*): where an issued copy is until it is pushed; by default under the Hub client's own
            folder.
    """

    def __init__(self, vault: Vault, terms: Terms | None = None, work: Path | None = None):
        from huggingface_hub import HfApi, constants

        self.vault, self.terms = vault, terms or Terms()
        self._work = work or Path(constants.HF_HOME) / "hf_fingerprint" / "outgoing"
        self._api = HfApi(library_name="hf-fingerprint")

    def issue_all(
        self,
        issuer: Issuer,
        assignments: Sequence[Assignment],
        update: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> Iterator[PublishedCopy]:
        """Issues and pushes one copy after another, yielding each when it is confirmed. The first that fails ends it;
        what was confirmed stays, and the same call goes on from there."""
        assignments = list(dict.fromkeys(assignments))
        twice = [repo for repo, count in Counter(a.repo for a in assignments).items() if count > 1]
        if twice:
            raise HubError(f"{twice[0]} is given to several recipients: give each a repo of their own.")
        for assignment in assignments:
            check_recipient(assignment.recipient)
        for assignment in assignments:
            yield self.issue(issuer, assignment, update, advance)

    def issue(
        self,
        issuer: Issuer,
        assignment: Assignment,
        update: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> PublishedCopy:
        """Issues a copy and pushes it, or goes on with one that was begun.

        Args:
            issuer ([`Issuer`]): the open base.
            assignment ([`Assignment`]): whose, and where.
            update (`bool`, *optional*, defaults to `False`): whether the repo holds this recipient's copy of another
                base, to be replaced in a new commit.
            advance (callable, *optional*): told the bytes written while the copy is made.

        Raises:
            [`FingerprintError`]: in one sentence, what is in the way; the record stays, for the next attempt.
        """
        place = self._work / issuer.base.base_id / assignment.repo.replace("/", "--")
        done = self._publish(
            issuer.base, assignment, update, lambda: issuer.issue(assignment.recipient, place, advance)
        )
        shutil.rmtree(place, ignore_errors=True)
        return done

    def push(self, folder: str | Path, repo: str, account: str | None = None, update: bool = False) -> PublishedCopy:
        """Pushes a copy that is in its folder already: issued without a repo, or trained and recorded.

        Args:
            folder (`str` or `Path`): the copy's folder; it stays as it is.
            repo (`str`): the variant repo, `org/name`.
            account (`str`, *optional*): the recipient's Hub account, to be given access.
            update (`bool`, *optional*, defaults to `False`): see [`Publisher.issue`].

        Raises:
            [`FingerprintError`]: in one sentence, what is in the way.
        """
        with open_checkpoint(folder) as checkpoint:
            whole = weights_hash(checkpoint, self.vault)
        record = next((c for c in self.vault.copies() if c.content_hash == whole and c.state == "issued"), None)
        if record is None:
            raise HubError(f"{folder} is no copy on record in {self.vault.folder}: issue or record it first.")
        base = find_base(self.vault, record.base_id)
        copy = IssuedCopy(
            record.recipient, Path(folder), record.copy_id, base.base_id, whole, str(record.commitment), 0, (), False
        )
        return self._publish(base, Assignment(record.recipient, repo, account), update, lambda: copy)

    def _publish(
        self, base: Base, assignment: Assignment, update: bool, make: Callable[[], IssuedCopy]
    ) -> PublishedCopy:
        repo, vault = assignment.repo, self.vault
        if assignment.account is not None and self.terms.gated is None:
            raise HubError(f"Access to {repo} can be given to an account only if it is gated: add --gated.")
        lock = hold(vault, base, f"publish {repo}", f"{repo} is being published by another process: wait for it.")
        try:
            recorded = publications(vault, repo)
            begun = _begun(base, assignment, recorded, update)
            if begun is not None and begun.state == "confirmed":
                return _result(begun, (), new=False)
            with refusals(repo):
                head = self._open_repo(repo, ours=bool(recorded))
                if begun is not None and _holds(head, begun.files):
                    return self._finish(assignment, begun, str(head.sha), ())
            copy = make()
            operations = self._prepare(base, copy, repo)
            files = {o.path_in_repo: o.upload_info.sha256.hex() for o in operations}
            begun = begin_publication(vault, copy.copy_id, repo, files, assignment.account)
            with refusals(repo):
                revision = self._commit(repo, head, operations, files)
                return self._finish(assignment, begun, revision, copy.left_out)
        finally:
            lock.release()

    def _open_repo(self, repo: str, ours: bool) -> "ModelInfo":
        """Makes the repo if it is missing, and looks at what it holds; refuses what isn't ours to fill."""
        terms = self.terms
        patiently(lambda: self._api.create_repo(repo, private=terms.private, exist_ok=True))
        head = patiently(lambda: self._api.model_info(repo, files_metadata=True))
        if terms.private and not head.private:
            raise HubError(f"{repo} is public: make it private in its settings, or publish with --public.")
        held = {sibling.rfilename for sibling in head.siblings or []} - _NOT_OURS
        if held and not ours:
            raise HubError(f"{repo} holds files already ({min(held)}) and is not on record here: choose another repo.")
        if terms.gated is not None and head.gated != terms.gated:
            patiently(lambda: self._api.update_repo_settings(repo, gated=terms.gated))
        return head

    def _prepare(self, base: Base, copy: IssuedCopy, repo: str) -> list["CommitOperationAdd"]:
        """What is pushed: the copy's folder, its configuration mended for both libraries, and its card."""
        from huggingface_hub import CommitOperationAdd

        config, readme = mended_config(copy.path), copy.path / README
        operations = [
            CommitOperationAdd(path.relative_to(copy.path).as_posix(), path)
            for path in sorted(copy.path.rglob("*"))
            if path.is_file() and path != readme and (path != copy.path / CONFIG or config is None)
        ]
        for operation in operations:
            if operation.path_in_repo in copy.digests:  # or the client reads the whole file for it
                operation.upload_info.sha256 = bytes.fromhex(copy.digests[operation.path_in_repo])
        weights = {
            o.path_in_repo: o.upload_info.sha256.hex() for o in operations if o.path_in_repo.endswith(".safetensors")
        }
        card = make_card(
            copy.path,
            repo,
            weights,
            copy.content_hash,
            base_model=self.terms.base_model or (base.source if base.revision else None),
            commitment=copy.commitment if self.terms.disclose else None,
        )
        operations += [CommitOperationAdd(CONFIG, config)] if config is not None else []
        return [*operations, CommitOperationAdd(README, str(card).encode())]

    def _commit(
        self, repo: str, head: "ModelInfo", operations: list["CommitOperationAdd"], files: dict[str, str]
    ) -> str:
        """One commit on top of the head that was seen; if the answer gets lost, what the repo holds decides."""
        from huggingface_hub import CommitOperationDelete

        stale = {sibling.rfilename for sibling in head.siblings or []} - set(files) - _NOT_OURS
        deletions = [CommitOperationDelete(name) for name in sorted(stale)]

        def attempt() -> str:
            try:
                made = self._api.create_commit(
                    repo, [*operations, *deletions], commit_message="Add the model", parent_commit=head.sha
                )
                return str(made.oid)
            except Exception:
                now = self._api.model_info(repo, files_metadata=True)
                if now.sha != head.sha and _holds(now, files):
                    return str(now.sha)
                raise

        return patiently(attempt)

    def _finish(
        self, assignment: Assignment, begun: Publication, revision: str, left_out: tuple[str, ...]
    ) -> PublishedCopy:
        """Gives access and confirms the commit."""
        repo, account = assignment.repo, assignment.account
        if account is not None:
            accepted = patiently(lambda: list(self._api.list_accepted_access_requests(repo)))
            if account not in {request.username for request in accepted}:
                patiently(lambda: self._api.grant_access(repo, account))
        return _result(confirm_publication(self.vault, begun.copy_id, revision), left_out, new=True)


def push_to_hub(
    model: str | Path,
    recipient: str,
    repo: str,
    vault: Vault | str | Path,
    settings: Settings | None = None,
    terms: Terms | None = None,
    account: str | None = None,
) -> PublishedCopy:
    """Issues one recipient's copy of a model and pushes it to a variant repo.

    ```python
    push_to_hub("org/model", "alice", "org/model-alice", vault="vault")
    ```

    What a Trainer's or timm's own `push_to_hub` put into a private repo is such a model: it is marked after the fact.

    Args:
        model (`str` or `Path`): the base: a folder, a file or a Hub id.
        recipient (`str`): the recipient's name.
        repo (`str`): the variant repo, `org/name`; made if it is missing.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        settings ([`Settings`], *optional*): for a base that isn't registered yet.
        terms ([`Terms`], *optional*): private by default.
        account (`str`, *optional*): the recipient's Hub account, to be given access to a gated repo.

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way; the same call again goes on from there.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    with Issuer(model, vault, settings) as issuer:
        return Publisher(vault, terms).issue(issuer, Assignment(recipient, repo, account))


def again(vault: Vault, old_base: str | Path) -> list[Assignment]:
    """The recipients who have a published copy of a base, and where: for a new version of the model.

    Args:
        vault ([`Vault`]): the vault.
        old_base (`str` or `Path`): the base that they have: its id in the vault, a path or a Hub id.

    Raises:
        [`VaultError`]: if the vault holds no such base.
    """
    base_id = find_base(vault, old_base).base_id
    found = {p.repo: Assignment(p.recipient, p.repo, p.account) for p in publications(vault) if p.base_id == base_id}
    return list(found.values())


def _holds(info: "ModelInfo", files: dict[str, str]) -> bool:
    """Whether a repo holds all the files that are told apart by their SHA-256, which are those with the weights."""
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    large = {name: sibling.lfs.sha256 for name, sibling in there.items() if name in files and sibling.lfs is not None}
    return bool(large) and set(files) <= set(there) and all(files[name] == digest for name, digest in large.items())


def _begun(base: Base, assignment: Assignment, recorded: Sequence[Publication], update: bool) -> Publication | None:
    """What is on record for this recipient, base and repo; refuses a repo that is on record for another."""
    repo = assignment.repo
    if any(found.recipient != assignment.recipient for found in recorded):
        raise HubError(f"{repo} is on record for another recipient: choose another repo.")
    same = [found for found in recorded if found.base_id == base.base_id]
    if not same and not update and any(found.state == "confirmed" for found in recorded):
        raise HubError(
            f"{repo} holds a copy of another base: say --again with that base to replace it, or choose another repo."
        )
    return same[-1] if same else None


def _result(found: Publication, left_out: tuple[str, ...], new: bool) -> PublishedCopy:
    return PublishedCopy(found.recipient, found.repo, str(found.revision), found.copy_id, found.base_id, left_out, new)
