"""Publishes copies, each in a variant repo: records the publication, pushes it in one commit, then confirms it.

After a crash or an error at any point, run the same call again to resume: it pushes the existing copy, recognizes its
commit by the hashes of the files, and marks and records no recipient twice.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import (
    Checkpoint,
    HubOptions,
    SkippedFile,
    can_publish_unchanged,
    open_checkpoint,
    remove_on_failure,
    write_copy,
)
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.config import FingerprintConfig, PublishConfig
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub.api import translate_errors
from hf_fingerprint.hub.repos import VariantRepo, holds_files, relocate_operations
from hf_fingerprint.hub.variants import Assignment, PublishedCopy
from hf_fingerprint.issuing import CopyCallback, Finish, IssuedCopy, Issuer, hand_over
from hf_fingerprint.progress import Progress, shows_progress
from hf_fingerprint.registration import AncestorInput
from hf_fingerprint.registration.content import lookup_base, weights_hash
from hf_fingerprint.registration.same_weights import find_recorded_copies
from hf_fingerprint.vault import (
    Base,
    Publication,
    Vault,
    acquire_lock,
    begin_publication,
    canonical_recipient,
    check_model_folder,
    confirm_publication,
    publications,
    same_recipient,
)


if TYPE_CHECKING:
    import torch
    from huggingface_hub import CommitOperationAdd


MAX_PREFETCH_BYTES = 1 << 29
FinishPush = Callable[[], PublishedCopy]
LeftOut = tuple[SkippedFile, ...]


class Publisher:
    """Pushes copies to variant repos, one at a time, with at most one copy on disk.

    Args:
        vault ([`Vault`]): the vault.
        publish_config ([`PublishConfig`], *optional*): visibility and access of the repos.
        work (`Path`, *optional*): the folder for copies until they are pushed. Defaults to a folder in `HF_HOME`.
        include_code (`bool`, *optional*, defaults to `False`): whether [`Publisher.push`] pushes a copy's `.py` files.
            For [`Publisher.issue`], the [`Issuer`] decides.
        token (`str` or `bool`, *optional*): see [`HubOptions`].
    """

    def __init__(
        self,
        vault: Vault,
        publish_config: PublishConfig | None = None,
        work: Path | None = None,
        include_code: bool = False,
        *,
        token: str | bool | None = None,
    ):
        from huggingface_hub import HfApi, constants

        self.vault, self.publish_config, self.include_code = vault, publish_config or PublishConfig(), include_code
        self._work = work or Path(constants.HF_HOME) / "hf_fingerprint" / "outgoing"
        self._token = HubOptions(token=token).token
        self._api = HfApi(library_name="hf-fingerprint", token=token)

    def issue_all(
        self, issuer: Issuer, assignments: Sequence[Assignment], update: bool = False, progress: Progress | None = None
    ) -> Iterator[PublishedCopy]:
        """Issues and pushes one copy after another, and yields each when it is confirmed. Stops at the first error;
        the same call resumes after the confirmed copies.

        While a copy of up to 512 MB is pushed, the next one is made in memory, unless a library saves it.
        """
        canonical = (replace(each, recipient=canonical_recipient(each.recipient)) for each in assignments)
        assignments = list(dict.fromkeys(canonical))
        for repo, count in Counter(each.repo for each in assignments).items():
            if count > 1:
                raise HubError(f"{repo} is given to several recipients: give each recipient a different repo.")
        if issuer.copy_bytes > MAX_PREFETCH_BYTES or issuer.is_saved_by_library:
            yield from (self.issue(issuer, assignment, update, progress) for assignment in assignments)
            return
        next_push: Future[tuple[ExitStack, FinishPush]] | None = None
        with ThreadPoolExecutor(1) as pool:
            try:
                for assignment in (*assignments, None):
                    pending = next_push.result() if next_push is not None else None
                    next_push = None
                    if assignment is not None:
                        push = self._prepare_issue(issuer, assignment, update, progress, True)
                        next_push = pool.submit(_enter, push)
                    if pending is not None:
                        stack, finish = pending
                        with stack:
                            published = finish()
                        yield published
            finally:
                if next_push is not None:
                    with suppress(Exception):  # the next call raises it again
                        next_push.result()[0].close()

    @shows_progress
    def issue(
        self, issuer: Issuer, assignment: Assignment, update: bool = False, progress: Progress | None = None
    ) -> PublishedCopy:
        """Issues a copy and pushes it, or resumes an earlier attempt.

        Args:
            issuer ([`Issuer`]): the open base.
            assignment ([`Assignment`]): the recipient and the repo.
            update (`bool`, *optional*, defaults to `False`): whether to replace this recipient's copy of another base
                in the repo, in a new commit.
            progress (callable, *optional*): a [`Progress`].

        Raises:
            [`FingerprintError`]: if the copy can't be issued or pushed. Its record stays, for the next attempt.
        """
        with self._prepare_issue(issuer, assignment, update, progress, False) as finish:
            return finish()

    @contextmanager
    def _prepare_issue(
        self, issuer: Issuer, assignment: Assignment, update: bool, progress: Progress | None, in_memory: bool
    ) -> Iterator[FinishPush]:
        """Prepares the push of a new copy; see `_prepare_push`."""
        folder = self._work / issuer.base.base_id / assignment.repo.replace("/", "--")

        def prepare(on_written: CopyCallback) -> AbstractContextManager[Finish]:
            return issuer.prepare(assignment.recipient, folder, progress, in_memory, True, on_written)

        with self._prepare_push(issuer.base, assignment, update, prepare, issuer.include_code) as finish_push:

            def finish() -> PublishedCopy:
                published = finish_push()
                shutil.rmtree(folder, ignore_errors=True)
                return published

            yield finish

    def push(self, folder: str | Path, repo: str, account: str | None = None, update: bool = False) -> PublishedCopy:
        """Pushes an existing copy, which was issued to a folder, or trained and recorded.

        [`list_contents`] chooses the files to push. Weights in a pickle, or in files with extra metadata, are
        rewritten for the push.

        Args:
            folder (`str` or `Path`): the copy's folder, which is not changed.
            repo (`str`): the variant repo, `org/name`.
            account (`str`, *optional*): the recipient's Hub account, which is given access.
            update (`bool`, *optional*, defaults to `False`): see [`Publisher.issue`].

        Raises:
            [`FingerprintError`]: if the copy is not recorded or can't be pushed.
        """
        with open_checkpoint(folder) as checkpoint:
            check_model_folder(checkpoint.source, self.vault.folder)
            content_hash = weights_hash(checkpoint, self.vault)
            issued = [copy for copy in self.vault.copies() if copy.state == "issued"]
            record = next((copy for copy in issued if copy.content_hash == content_hash), None)
            if record is None:  # a copy that was issued in memory, under the names that its library saves
                record = next(iter(find_recorded_copies(checkpoint, self.vault.bases(), issued)), None)
            if record is None:
                raise HubError(f"{folder} is not a copy that {self.vault.folder} records: issue or record it first.")
            base, place = lookup_base(self.vault, record.base_id), self._work / "pushed" / record.copy_id
            copy = IssuedCopy(
                recipient=record.recipient,
                path=Path(folder),
                copy_id=record.copy_id,
                base_id=base.base_id,
                content_hash=content_hash,
                commitment=str(record.commitment),
                coalition_certified=base.certified,
                left_out=(),
                new=False,
            )

            def prepare(on_written: CopyCallback) -> AbstractContextManager[Finish]:
                unchanged = can_publish_unchanged(checkpoint)
                pushed = copy if unchanged else self._rewrite_weights(checkpoint, copy, place)
                return nullcontext(partial(hand_over, pushed, on_written))

            assignment = Assignment(record.recipient, repo, account)
            try:
                with self._prepare_push(base, assignment, update, prepare, self.include_code) as finish:
                    return finish()
            finally:
                shutil.rmtree(place, ignore_errors=True)

    def _rewrite_weights(self, checkpoint: Checkpoint, copy: IssuedCopy, place: Path) -> IssuedCopy:
        """The same copy in another folder, with its weights in files without extra metadata."""
        shutil.rmtree(place, ignore_errors=True)
        with remove_on_failure(place):
            place.mkdir(parents=True)
            written = write_copy(checkpoint, place, {}, include_code=self.include_code)
        return replace(copy, path=place, left_out=written.left_out)

    @contextmanager
    def _prepare_push(
        self,
        base: Base,
        assignment: Assignment,
        update: bool,
        prepare: Callable[[CopyCallback], AbstractContextManager[Finish]],
        include_code: bool,
    ) -> Iterator[FinishPush]:
        """Opens the repo and prepares the copy, unless it was pushed before; yields the function that pushes it.

        If the block ends without a call to it, the copy is discarded, as [`Issuer.prepare`] does.
        """
        repo, vault = assignment.repo, self.vault
        variant = VariantRepo(self._api, repo, self.publish_config)
        if assignment.account is not None and self.publish_config.gated is None:
            raise HubError(f"{repo} is not gated, so no account can be given access: add --gated.")
        with ExitStack() as stack:
            locked = f"{repo} is being published by another process: wait for it."
            stack.callback(acquire_lock(vault, base, f"publish {repo}", locked).release)
            recorded = publications(vault, repo)
            publication = _find_publication(base, assignment, recorded, update)
            if publication is not None and publication.state == "confirmed":
                yield partial(_published_copy, publication, (), new=False)
                return
            with translate_errors(repo, self._token):
                head = variant.open(on_record=bool(recorded))
            if publication is not None and holds_files(head, publication.files):
                yield partial(self._confirm, variant, assignment, publication.copy_id, str(head.sha), ())
                return
            operations: list[CommitOperationAdd] = []
            files: dict[str, str] = {}
            files_left_out: list[SkippedFile] = []

            def upload(copy: IssuedCopy) -> None:
                added, left_out = variant.operations(base, copy, include_code)
                operations.extend(added)
                files_left_out.extend(left_out)
                files.update((o.path_in_repo, o.upload_info.sha256.hex()) for o in operations)
                with translate_errors(repo, self._token):
                    variant.upload(operations)

            finish_copy = stack.enter_context(prepare(upload))

            def finish() -> PublishedCopy:
                copy = finish_copy()  # writes to the disk and uploads at the same time
                if copy.path.is_dir():
                    relocate_operations(operations, copy.path)
                begin_publication(vault, copy.copy_id, repo, files, assignment.account)
                with translate_errors(repo, self._token):
                    revision = variant.commit(head, operations, files)
                left_out = tuple(dict.fromkeys([*copy.left_out, *files_left_out]))
                return self._confirm(variant, assignment, copy.copy_id, revision, left_out)

            yield finish

    def _confirm(
        self, variant: VariantRepo, assignment: Assignment, copy_id: str, revision: str, left_out: LeftOut
    ) -> PublishedCopy:
        """Gives the account access, and records the commit as confirmed."""
        if assignment.account is not None:
            with translate_errors(variant.repo, self._token):
                variant.give_access(assignment.account)
        return _published_copy(confirm_publication(self.vault, copy_id, revision), left_out, new=True)


def _enter(push: AbstractContextManager[FinishPush]) -> tuple[ExitStack, FinishPush]:
    """Enters a prepared push in a thread, to be finished or discarded in another."""
    stack = ExitStack()
    return stack, stack.enter_context(push)


@shows_progress
def push_to_hub(
    model: ModelInput,
    recipient: str,
    repo: str,
    vault: Vault | str | Path,
    config: FingerprintConfig | None = None,
    publish_config: PublishConfig | None = None,
    account: str | None = None,
    include_code: bool = False,
    as_base: bool = False,
    *,
    base: ModelInput | None = None,
    ancestor: AncestorInput = None,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> PublishedCopy:
    """Issues a recipient's copy of a model and pushes it to a variant repo.

    ```python
    push_to_hub("org/model", "alice", "org/model-alice", vault="vault")
    ```

    Args:
        model (`str`, `Path`, `torch.nn.Module` or mapping of `str` to `torch.Tensor`): the base: a folder, a file, a
            Hub id, a module or a state dict; see [`issue`].
        recipient, repo, account (`str`): see [`Assignment`]. A missing repo is created.
        vault ([`Vault`], `str` or `Path`): the vault, which may be locked.
        config ([`FingerprintConfig`], *optional*): how to mark a base that is not registered yet.
        publish_config ([`PublishConfig`], *optional*): visibility and access. Private by default.
        include_code (`bool`, *optional*, defaults to `False`): whether the copy includes the model's `.py` files.
        as_base (`bool`, *optional*, defaults to `False`): see [`register`].
        base (`str`, `Path`, `torch.nn.Module` or mapping, *optional*): see [`issue`].
        ancestor (`str`, `Path`, `torch.nn.Module`, mapping or `False`, *optional*): see [`register`].
        progress (callable, *optional*): a [`Progress`].
        device, revision, token, cache_dir, subfolder, variant (*optional*): see [`register`]. They are about `model`;
            the token writes to `repo` too.

    Raises:
        [`FingerprintError`]: if the copy can't be issued or pushed. Run the same call again to resume.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    chosen = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant).keywords
    publisher, assignment = Publisher(vault, publish_config, token=token), Assignment(recipient, repo, account)
    chosen |= {"base": base, "ancestor": ancestor, "device": device}
    with Issuer(model, vault, config, progress, include_code, as_base, **chosen) as issuer:
        return publisher.issue(issuer, assignment, progress=progress)


def reissue_assignments(vault: Vault, old_base: ModelInput) -> list[Assignment]:
    """The recipients and repos of the published copies of a base, for a new version of the model.

    Args:
        vault ([`Vault`]): the vault.
        old_base (`str` or [`ModelInput`]): the base of the published copies, or its id in the vault.

    Raises:
        [`VaultError`]: if the vault does not hold the base.
    """
    base_id = lookup_base(vault, old_base).base_id
    found = {p.repo: Assignment(p.recipient, p.repo, p.account) for p in publications(vault) if p.base_id == base_id}
    return list(found.values())


def _find_publication(
    base: Base, assignment: Assignment, recorded: Sequence[Publication], update: bool
) -> Publication | None:
    """The recorded publication for this recipient, base and repo.

    Raises:
        [`HubError`]: if the repo is recorded for another recipient, or for another base without `update`.
    """
    repo = assignment.repo
    if not all(same_recipient(found.recipient, assignment.recipient) for found in recorded):
        raise HubError(f"{repo} is recorded for another recipient: choose another repo.")
    same = [found for found in recorded if found.base_id == base.base_id]
    if not same and not update and any(found.state == "confirmed" for found in recorded):
        replacing = "add --reissue-from with that base to replace it, or choose another repo"
        raise HubError(f"{repo} holds a copy of another base: {replacing}.")
    return same[-1] if same else None


def _published_copy(found: Publication, left_out: LeftOut, new: bool) -> PublishedCopy:
    return PublishedCopy(found.recipient, found.repo, str(found.revision), found.copy_id, found.base_id, left_out, new)
