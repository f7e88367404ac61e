"""The issuer: an open base that is copied for one recipient after another."""

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.checkpoints import (
    HubOptions,
    SkippedFile,
    WrittenCopy,
    content_hash,
    digest_tensors,
    disk_full_error,
    is_disk_full_error,
    list_contents,
    open_checkpoint,
    remove_on_failure,
    resolve_parent,
    sync,
    write_copy,
)
from hf_fingerprint.checkpoints.memory import MemoryCheckpoint, ModelInput
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import CheckpointError, FingerprintError, FingerprintWarning, VaultError
from hf_fingerprint.issuing.destination import checked_name, partial_path
from hf_fingerprint.issuing.in_memory import mark_in_memory, write_module
from hf_fingerprint.issuing.issued import IssuedCopy
from hf_fingerprint.issuing.updates import CopyUpdates
from hf_fingerprint.keys import commitment
from hf_fingerprint.models.live_modules import has_own_format
from hf_fingerprint.printable import printable
from hf_fingerprint.progress import Progress, part_of, shows_progress
from hf_fingerprint.registration import AncestorInput, register
from hf_fingerprint.registration.content import match_base
from hf_fingerprint.registration.registering import register_checkpoint
from hf_fingerprint.registration.same_weights import copy_hash
from hf_fingerprint.tables import one_line_repr
from hf_fingerprint.vault import Base, CopyRecord, Vault, acquire_lock, check_outside_vaults


if TYPE_CHECKING:
    import torch

PLACE_IN_MEMORY = "(in memory)"  # recorded for a copy without a folder
CopyCallback = Callable[[IssuedCopy], None]
Finish = Callable[[], IssuedCopy]


class Issuer:
    """An open base from which several copies are issued; it is opened and hashed once.

    Args:
        model, vault, config, include_code, as_base, base, ancestor: see [`issue`].
        progress (callable, *optional*): a [`Progress`] for the registration.
        device, revision, token, cache_dir, subfolder, variant: see [`register`].
    """

    @shows_progress
    def __init__(
        self,
        model: ModelInput,
        vault: Vault,
        config: FingerprintConfig | None = None,
        progress: Progress | None = None,
        include_code: bool = False,
        as_base: bool = False,
        *,
        base: ModelInput | None = None,
        ancestor: AncestorInput = None,
        device: "str | torch.device | None" = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
    ):
        self.vault, self.include_code = vault, include_code
        options = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant)
        self._checkpoint = open_checkpoint(model, options=options)
        try:
            self._state = self._checkpoint.state()
            self.base: Base
            if base is None:
                self.base, self._names = register_checkpoint(
                    self._checkpoint, vault, config, progress, as_base=as_base, device=device, ancestor=ancestor
                )
            else:
                access = options.access.keywords | {"device": device}
                self.base = register(base, vault, config, progress, as_base=as_base, ancestor=ancestor, **access)
                self._names = match_base(self._checkpoint, self.base, vault)
        except BaseException:
            self._checkpoint.close()
            raise
        stored_triggers = vault.trigger_set(self.base)
        self._trigger_set = None if stored_triggers is None else TriggerSet.from_bytes(stored_triggers)
        if self._trigger_set is not None and self._trigger_set.head not in self._names:
            warnings.warn(
                f"{self._checkpoint.source.name} lacks {printable(self._trigger_set.head)}, so its copies get no "
                f"trigger labels, and queries can't trace them.",
                FingerprintWarning,
                stacklevel=2,
            )
            self._trigger_set = None
        self._updates = CopyUpdates(self.base, self._checkpoint, self._names, self._trigger_set)
        self._stack = ExitStack()
        self._stack.enter_context(vault.keep_open())

    def __enter__(self) -> "Issuer":
        return self

    def __repr__(self) -> str:
        vault = str(self.vault.folder)
        return one_line_repr(self, base=self.base.base_id, source=self.base.source, vault=vault)

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._checkpoint.close()

    @property
    def copy_bytes(self) -> int:
        """The size of the weights of one copy."""
        return sum(info.nbytes for info in self._checkpoint.tensors.values())

    @property
    def is_saved_by_library(self) -> bool:
        """Whether copies are modules that their library saves, which it does to the disk."""
        return isinstance(self._checkpoint, MemoryCheckpoint) and has_own_format(self._checkpoint.module)

    @shows_progress
    def issue_all(
        self, recipients: Sequence[str], folder: str | Path, progress: Progress | None = None
    ) -> Iterator[IssuedCopy]:
        """Issues a copy for each recipient to `folder/NAME`, and yields each once it is complete.

        While a copy is written, the previous one is flushed to the disk.
        """
        recipients = list(dict.fromkeys(checked_name(recipient, as_folder=True) for recipient in recipients))
        with ThreadPoolExecutor(1) as pool:
            before = None
            for number, recipient in enumerate(recipients):
                part = part_of(progress, "writing copies", len(recipients) * self.copy_bytes, number * self.copy_bytes)
                stack = ExitStack()
                finish = stack.enter_context(self.prepare(recipient, Path(folder) / recipient, part))
                after = pool.submit(_finish, stack, finish)
                if before is not None:
                    yield before.result()
                before = after
            if before is not None:
                yield before.result()

    @shows_progress
    def issue(self, recipient: str, out: str | Path, progress: Progress | None = None) -> IssuedCopy:
        """Issues one copy. A second call with the same arguments returns the existing copy."""
        with self.prepare(recipient, Path(out), progress) as finish:
            return finish()

    @contextmanager
    def prepare(
        self,
        recipient: str,
        out: Path,
        progress: Progress | None = None,
        in_memory: bool = False,
        file_digests: bool = False,
        on_written: CopyCallback | None = None,
    ) -> Iterator[Finish]:
        """Writes a copy next to its path, and yields the function that moves it there.

        If the block ends without a call to it, the copy is discarded; its record stays begun, and the next attempt
        resumes it.

        Args:
            recipient, out, progress: see [`issue`] and [`Progress`].
            in_memory (`bool`, *optional*, defaults to `False`): whether the weights stay in memory until the end.
            file_digests (`bool`, *optional*, defaults to `False`): whether to hash the weight files too.
            on_written (callable, *optional*): called with the copy, at its temporary path, while it is flushed to the
                disk. The copy is moved to its path even if this fails.

        Yields:
            callable: moves the copy to its path and returns it.
        """
        recipient, out = checked_name(recipient), out.absolute()
        source = self._checkpoint.source
        parent = resolve_parent(out)
        if source.owns_folder and parent.is_relative_to(source.folder.resolve()):
            raise CheckpointError(f"{out} is inside the model's own folder: choose a path outside it.")
        check_outside_vaults(out)
        with ExitStack() as stack:
            locked = f"{out} is being issued by another process: wait for it."
            stack.callback(acquire_lock(self.vault, self.base, str(out), locked).release)
            earlier = self._find_earlier(recipient, out)
            free = not out.exists() or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
            existing = self._find_existing(recipient, out, earlier, free)
            if existing is not None:
                yield partial(hand_over, existing, on_written)
                return
            if not free or out.is_symlink():
                problem = f"{out} exists and is not this recipient's copy"
                raise CheckpointError(f"{problem}: choose another path for {recipient}'s.")
            self._check_unchanged()
            if earlier is not None and earlier.state == "written":
                earlier = None  # its files are gone
            options = progress, in_memory, file_digests, on_written
            yield stack.enter_context(self._write_copy(recipient, out, earlier, *options))

    @shows_progress
    def issue_in_memory(
        self, recipient: str, progress: Progress | None = None
    ) -> "torch.nn.Module | dict[str, torch.Tensor]":
        """A new marked copy of a model that was given as a module or a state dict. It is recorded before it is
        returned, and each call marks and records another copy.

        Raises:
            [`CheckpointError`]: if the model was given as a path or a Hub id.
        """
        checkpoint, base, recipient = self._checkpoint, self.base, checked_name(recipient)
        if not isinstance(checkpoint, MemoryCheckpoint):
            raise CheckpointError(f"A copy of {checkpoint.source.name} needs a folder: give it as out (--out).")
        self._check_unchanged()
        record, copy_key = self.vault.begin_copy(base, recipient, PLACE_IN_MEMORY)
        copy, digests = mark_in_memory(checkpoint, self._updates.make(copy_key), progress)
        marked = {name: digests[theirs] for name, theirs in self._names.items() if theirs in digests}
        is_answering = self._trigger_set is not None
        new_hash = copy_hash(base, marked)
        self.vault.mark_written(record, copy_key, new_hash, is_answering=is_answering, is_issued=True)
        return copy

    def _check_unchanged(self) -> None:
        if self._checkpoint.state() != self._state:
            raise CheckpointError(f"{self._checkpoint.source.name} changed while it was open: run the command again.")

    def _find_existing(self, recipient: str, out: Path, earlier: CopyRecord | None, free: bool) -> IssuedCopy | None:
        """The copy that an earlier run completed, moved to its path if that run did not."""
        if earlier is not None and earlier.state == "written" and free:
            if not (partial_dir := partial_path(out, earlier)).exists():
                return None
            left_out = list_contents(self._checkpoint.source, self.include_code).left_out
            return self._move_into_place(earlier, partial_dir, left_out)
        if earlier is not None and earlier.state != "begun" and not free:
            return self._check_existing(earlier, out)
        moved = None if free else self._find_moved(recipient, out)
        return None if moved is None else self._to_issued_copy(moved, (), new=False)

    def _find_earlier(self, recipient: str, out: Path) -> CopyRecord | None:
        """The last record of this recipient's copy at this path."""
        same = [c for c in self.vault.copies(self.base.base_id, recipient) if c.out == str(out)]
        same = [c for c in same if c.state != "issued" or out.exists()]
        return same[-1] if same else None

    def _find_moved(self, recipient: str, out: Path) -> CopyRecord | None:
        """The record of a copy that was issued to another path and then moved here."""
        issued = [c for c in self.vault.copies(self.base.base_id, recipient) if c.state == "issued"]
        if not issued:
            return None
        try:
            with open_checkpoint(out) as copy:
                found = content_hash(copy.tensors, digest_tensors(copy))
        except FingerprintError:
            return None
        return next((replace(c, out=str(out)) for c in issued if c.content_hash == found), None)

    @contextmanager
    def _write_copy(
        self,
        recipient: str,
        out: Path,
        earlier: CopyRecord | None,
        progress: Progress | None,
        in_memory: bool,
        file_digests: bool,
        on_written: CopyCallback | None,
    ) -> Iterator[Finish]:
        """Records and writes a new copy; see [`Issuer.prepare`]."""
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full_error(error):
                raise disk_full_error(out.parent) from None
            raise CheckpointError(f"{out.parent} can't be made ({error.strerror}): choose another path.") from None
        record, copy_key = self.vault.begin_copy(self.base, recipient, out, earlier)
        partial_dir = partial_path(out, record)
        if partial_dir.exists():
            shutil.rmtree(partial_dir)
        with remove_on_failure(partial_dir):
            partial_dir.mkdir()
            written = self._write(partial_dir, copy_key, progress, in_memory, file_digests)
        digests = {path.relative_to(partial_dir).as_posix(): digest for path, digest in written.file_digests.items()}
        copy_commitment = commitment(copy_key, record.recipient, written.content_hash)
        completed = replace(record, content_hash=written.content_hash, commitment=copy_commitment)
        issued_copy = replace(self._to_issued_copy(completed, written.left_out, new=True), digests=digests)

        def flush_and_record() -> CopyRecord:
            written.flush()
            is_answering = self._trigger_set is not None
            return self.vault.mark_written(record, copy_key, written.content_hash, is_answering=is_answering)

        def finish() -> IssuedCopy:
            discard.pop_all()
            with ThreadPoolExecutor(1) as pool:
                with remove_on_failure(partial_dir):
                    written.write_buffered()
                flushing = pool.submit(flush_and_record)
                try:
                    hand_over(replace(issued_copy, path=partial_dir), on_written)
                finally:
                    with remove_on_failure(partial_dir):
                        flushed_record = flushing.result()
                    self._move_into_place(flushed_record, partial_dir, written.left_out)
            return issued_copy

        with ExitStack() as discard:
            discard.callback(shutil.rmtree, partial_dir, ignore_errors=True)
            yield finish

    def _write(
        self, folder: Path, copy_key: bytes, progress: Progress | None, in_memory: bool, file_digests: bool
    ) -> WrittenCopy:
        """Writes a copy's files, as the library of a module does, or as the base's are."""
        checkpoint, updates = self._checkpoint, self._updates.make(copy_key)
        if isinstance(checkpoint, MemoryCheckpoint) and self.is_saved_by_library:
            return write_module(checkpoint, folder, updates, progress, file_digests, self.include_code)
        return write_copy(checkpoint, folder, updates, progress, in_memory, file_digests, self.include_code)

    def _move_into_place(self, record: CopyRecord, partial_dir: Path, left_out: tuple[SkippedFile, ...]) -> IssuedCopy:
        out = Path(record.out)
        try:
            if out.is_dir():
                out.rmdir()  # empty: checked before
            partial_dir.rename(out)
            sync(out.parent)
        except OSError as error:
            problem = f"The copy is complete, but can't be moved to {out} ({error.strerror})"
            raise CheckpointError(f"{problem}: clear the path and run again.") from None
        self.vault.mark_issued(record.copy_id)
        return self._to_issued_copy(record, left_out, new=True)

    def _check_existing(self, record: CopyRecord, out: Path) -> IssuedCopy:
        with open_checkpoint(out) as copy:
            if content_hash(copy.tensors, digest_tensors(copy)) != record.content_hash:
                problem = f"{out} is not as it was issued to {record.recipient}"
                raise CheckpointError(f"{problem}: move it away to issue a new copy.")
        if record.state != "issued":
            self.vault.mark_issued(record.copy_id)
        return self._to_issued_copy(record, (), new=False)

    def _to_issued_copy(self, record: CopyRecord, left_out: tuple[SkippedFile, ...], new: bool) -> IssuedCopy:
        if record.content_hash is None or record.commitment is None:
            raise VaultError(f"The record of copy {record.copy_id} is incomplete: restore a backup of the vault.")
        ids = record.copy_id, record.base_id, record.content_hash, record.commitment
        return IssuedCopy(record.recipient, Path(record.out), *ids, self.base.certified, left_out, new)


def hand_over(copy: IssuedCopy, on_written: CopyCallback | None) -> IssuedCopy:
    """Calls `on_written` with a complete copy, and returns the copy."""
    if on_written is not None:
        on_written(copy)
    return copy


def _finish(stack: ExitStack, finish: Finish) -> IssuedCopy:
    with stack:
        return finish()
