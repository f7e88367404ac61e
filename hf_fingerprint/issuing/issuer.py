"""The issuer: an open base, copied for one recipient after another."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.carriers import TensorMarker
from hf_fingerprint.checkpoints import (
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
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import CheckpointError, FingerprintError, VaultError
from hf_fingerprint.issuing.destination import checked_name, partial_path
from hf_fingerprint.issuing.issued import CopyCallback, IssuedCopy, PreparedCopy
from hf_fingerprint.keys import commitment
from hf_fingerprint.progress import Progress, part_of
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Base, CopyRecord, Vault, acquire_lock, check_outside_vaults


def issue(
    model: str | Path,
    recipient: str,
    vault: Vault | str | Path,
    out: str | Path,
    config: FingerprintConfig | None = None,
    include_code: bool = False,
    as_base: bool = False,
) -> IssuedCopy:
    """Issues one copy. Registers the base first if the vault doesn't know it.

    Args:
        model (`str` or `Path`): the base: a folder, a file or a Hub id.
        recipient (`str`): the recipient's name.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        out (`str` or `Path`): the copy's folder, which must not exist yet.
        config ([`FingerprintConfig`], *optional*): for a base that isn't registered yet.
        include_code (`bool`, *optional*, defaults to `False`): whether the model's `.py` files go with the copy.
        as_base (`bool`, *optional*, defaults to `False`): registers a model that is a copy itself; see [`register`].

    Returns:
        [`IssuedCopy`]

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    with Issuer(model, vault, config, include_code=include_code, as_base=as_base) as issuer:
        return issuer.issue(recipient, Path(out))


class Issuer:
    """An open base from which copies are issued one after another; opened and hashed once.

    Args:
        model (`str` or `Path`): the base.
        vault ([`Vault`]): the vault.
        config ([`FingerprintConfig`], *optional*): for a base that isn't registered yet.
        progress (callable, *optional*): a [`Progress`] for the registration.
        include_code (`bool`, *optional*, defaults to `False`): whether the model's `.py` files go with the copies.
        as_base (`bool`, *optional*, defaults to `False`): registers a model that is a copy itself; see [`register`].
    """

    def __init__(
        self,
        model: str | Path,
        vault: Vault,
        config: FingerprintConfig | None = None,
        progress: Progress | None = None,
        include_code: bool = False,
        as_base: bool = False,
    ):
        self.vault, self.include_code = vault, include_code
        self._checkpoint = open_checkpoint(model)
        try:
            self._state = self._checkpoint.state()
            self.base: Base = register(self._checkpoint, vault, config, progress, as_base=as_base)
        except BaseException:
            self._checkpoint.close()
            raise
        self._codebook = self.base.codebook()
        stored_triggers = vault.trigger_set(self.base)
        self._trigger_set = None if stored_triggers is None else TriggerSet.from_bytes(stored_triggers)
        self._stack = ExitStack()
        self._stack.enter_context(vault.keep_open())

    def __enter__(self) -> "Issuer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._checkpoint.close()

    @property
    def copy_bytes(self) -> int:
        """The size of one copy's weights."""
        return sum(info.nbytes for info in self._checkpoint.tensors.values())

    def issue_all(
        self, recipients: Sequence[str], folder: Path, progress: Progress | None = None
    ) -> Iterator[IssuedCopy]:
        """Issues a copy for each recipient to `folder/NAME`, yielding each as it is done.

        While one copy is made the one before it goes to the disk.
        """
        recipients = list(dict.fromkeys(checked_name(recipient, as_folder=True) for recipient in recipients))
        with ThreadPoolExecutor(1) as pool:
            before = None
            for number, recipient in enumerate(recipients):
                part = part_of(progress, "writing copies", len(recipients) * self.copy_bytes, number * self.copy_bytes)
                after = pool.submit(self.prepare(recipient, folder / recipient, part).finish, _no_callback)
                if before is not None:
                    yield before.result()
                before = after
            if before is not None:
                yield before.result()

    def issue(self, recipient: str, out: Path, progress: Progress | None = None) -> IssuedCopy:
        """Issues one copy. Again with the same arguments, it finds what is there."""
        return self.prepare(recipient, out, progress).finish(_no_callback)

    def prepare(
        self,
        recipient: str,
        out: Path,
        progress: Progress | None = None,
        in_memory: bool = False,
        file_digests: bool = False,
    ) -> PreparedCopy:
        """Makes a copy beside its place, or with its weights in memory; hashes its files if they will be pushed."""
        recipient, out = checked_name(recipient), out.absolute()
        source = self._checkpoint.source
        within = resolve_parent(out)
        if source.owns_folder and within.is_relative_to(source.folder.resolve()):
            raise CheckpointError(f"{out} is inside the model's own folder: choose a place outside it.")
        check_outside_vaults(out)
        with ExitStack() as stack:
            refusal = f"{out} is being issued by another process: wait for it."
            stack.callback(acquire_lock(self.vault, self.base, str(out), refusal).release)
            earlier = self._find_earlier(recipient, out)
            is_free = not out.exists() or (out.is_dir() and not out.is_symlink() and not any(out.iterdir()))
            if earlier is not None and earlier.state == "written" and is_free:
                partial_dir = partial_path(out, earlier)
                if partial_dir.exists():
                    return PreparedCopy.of(self._move_into_place(earlier, partial_dir, self._left_out()))
                earlier = None
            if earlier is not None and earlier.state != "begun" and not is_free:
                return PreparedCopy.of(self._check_existing(earlier, out))
            moved = None if is_free else self._find_moved(recipient, out)
            if moved is not None:
                return PreparedCopy.of(self._to_issued_copy(moved, (), new=False))
            if not is_free or out.is_symlink():
                raise CheckpointError(
                    f"{out} exists and is not this recipient's copy: choose another place for {recipient}'s."
                )
            if self._checkpoint.state() != self._state:
                raise CheckpointError(
                    f"{self._checkpoint.source.name} changed while it was open: run the command again."
                )
            write = partial(
                write_copy,
                progress=progress,
                in_memory=in_memory,
                file_digests=file_digests,
                include_code=self.include_code,
            )
            return self._write_copy(recipient, out, earlier, stack, write)

    def _left_out(self) -> tuple[SkippedFile, ...]:
        return list_contents(self._checkpoint.source, self.include_code).left_out

    def _find_earlier(self, recipient: str, out: Path) -> CopyRecord | None:
        """The last record of this very copy, if an earlier run left one."""
        same = [c for c in self.vault.copies(self.base.base_id, recipient) if c.out == str(out)]
        same = [c for c in same if c.state != "issued" or out.exists()]
        return same[-1] if same else None

    def _find_moved(self, recipient: str, out: Path) -> CopyRecord | None:
        """The record of a copy that was issued whole, somewhere else, and now lies here."""
        issued = [c for c in self.vault.copies(self.base.base_id, recipient) if c.state == "issued"]
        if not issued:
            return None
        try:
            with open_checkpoint(out) as copy:
                found = content_hash(copy.tensors, digest_tensors(copy))
        except FingerprintError:
            return None
        return next((replace(c, out=str(out)) for c in issued if c.content_hash == found), None)

    def _write_copy(
        self,
        recipient: str,
        out: Path,
        earlier: CopyRecord | None,
        stack: ExitStack,
        write: Callable[..., WrittenCopy],
    ) -> PreparedCopy:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full_error(error):
                raise disk_full_error(out.parent) from None
            raise CheckpointError(f"{out.parent} can't be made ({error.strerror}): choose another place.") from None
        record, copy_key = self.vault.begin_copy(self.base, recipient, out, earlier)
        partial_dir = partial_path(out, record)
        if partial_dir.exists():
            shutil.rmtree(partial_dir)
        with remove_on_failure(partial_dir):
            partial_dir.mkdir()
            written = write(self._checkpoint, partial_dir, self._markers(copy_key))
            copy_hash = content_hash(self._checkpoint.tensors, written.digests)
        stack = stack.pop_all()
        digests = {path.relative_to(partial_dir).as_posix(): digest for path, digest in written.file_digests.items()}
        copy_commitment = commitment(copy_key, record.recipient, copy_hash)
        completed_record = replace(record, content_hash=copy_hash, commitment=copy_commitment)
        issued_copy = replace(self._to_issued_copy(completed_record, written.left_out, new=True), digests=digests)

        def flush_and_record() -> CopyRecord:
            written.flush()
            return self.vault.mark_written(record, copy_key, copy_hash, is_answering=self._trigger_set is not None)

        def finish(on_written: CopyCallback) -> IssuedCopy:
            with stack, ThreadPoolExecutor(1) as pool:
                with remove_on_failure(partial_dir):
                    written.write_buffered()
                flushing = pool.submit(flush_and_record)
                try:
                    on_written(replace(issued_copy, path=partial_dir))
                finally:
                    with remove_on_failure(partial_dir):
                        done = flushing.result()
                    self._move_into_place(done, partial_dir, written.left_out)
            return issued_copy

        def drop() -> None:
            with stack:
                shutil.rmtree(partial_dir, ignore_errors=True)

        return PreparedCopy(finish, drop)

    def _markers(self, copy_key: bytes) -> dict[str, TensorMarker]:
        """What changes each carrier, the head of a base that has questions, and what is tied to either."""
        base, tied = self.base, self._checkpoint.tied
        codeword = self._codebook.packed([copy_key])[0]
        markers = {}
        changes = {}
        amplitudes = {carrier.name: carrier.amplitude for carrier in base.carriers}
        if self._trigger_set is not None:
            head = self._trigger_set.head
            changes[head] = self._trigger_set.head_update(copy_key)
            amplitudes.setdefault(head, np.zeros(self._checkpoint.tensors[head].rows, np.float32))
        marked = {tied.get(name, name): name for name in amplitudes}
        for name, info in self._checkpoint.tensors.items():
            carrier = marked.get(tied.get(name, name))
            if carrier is not None:
                markers[name] = TensorMarker(
                    base.secret,
                    copy_key,
                    carrier,
                    info.dtype,
                    info.columns,
                    amplitudes[carrier],
                    codeword,
                    changes.get(carrier),
                )
        return markers

    def _move_into_place(self, record: CopyRecord, partial_dir: Path, left_out: tuple[SkippedFile, ...]) -> IssuedCopy:
        out = Path(record.out)
        try:
            if out.is_dir():
                out.rmdir()  # empty: checked before
            partial_dir.rename(out)
            sync(out.parent)
        except OSError as error:
            raise CheckpointError(
                f"The copy is whole, but {out} can't be put in its place ({error.strerror}): clear it and run again."
            ) from None
        self.vault.mark_issued(record.copy_id)
        return self._to_issued_copy(record, left_out, new=True)

    def _check_existing(self, record: CopyRecord, out: Path) -> IssuedCopy:
        with open_checkpoint(out) as copy:
            if content_hash(copy.tensors, digest_tensors(copy)) != record.content_hash:
                raise CheckpointError(
                    f"{out} is not as it was issued to {record.recipient}: move it away to issue a new copy."
                )
        if record.state != "issued":
            self.vault.mark_issued(record.copy_id)
        return self._to_issued_copy(record, (), new=False)

    def _to_issued_copy(self, record: CopyRecord, left_out: tuple[SkippedFile, ...], new: bool) -> IssuedCopy:
        if record.content_hash is None or record.commitment is None:
            raise VaultError(f"The record of copy {record.copy_id} is incomplete: restore a backup of the vault.")
        return IssuedCopy(
            recipient=record.recipient,
            path=Path(record.out),
            copy_id=record.copy_id,
            base_id=record.base_id,
            content_hash=record.content_hash,
            commitment=record.commitment,
            coalition_certified=self.base.certified,
            left_out=left_out,
            new=new,
        )


def _no_callback(copy: IssuedCopy) -> None:
    """What is done while a copy that goes nowhere else is put in its place."""
