"""The issuer: an open base that is copied for one recipient after another."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet
from hf_fingerprint.carriers import Delta, DenseDelta, MarkDelta, TensorUpdate
from hf_fingerprint.checkpoints import (
    HubOptions,
    SkippedFile,
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
from hf_fingerprint.issuing.issued import IssuedCopy
from hf_fingerprint.keys import commitment
from hf_fingerprint.progress import Progress, part_of
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Base, CopyRecord, Vault, acquire_lock, check_outside_vaults


if TYPE_CHECKING:
    import torch

CopyCallback = Callable[[IssuedCopy], None]
Finish = Callable[[], IssuedCopy]


def issue(
    model: str | Path,
    recipient: str,
    vault: Vault | str | Path,
    out: str | Path,
    config: FingerprintConfig | None = None,
    include_code: bool = False,
    as_base: bool = False,
    *,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> IssuedCopy:
    """Issues one copy, and registers the base first if the vault doesn't hold it.

    Args:
        model (`str` or `Path`): the base: a folder, a file or a Hub id.
        recipient (`str`): the recipient's name.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        out (`str` or `Path`): the folder of the copy, which must not exist yet.
        config ([`FingerprintConfig`], *optional*): for the registration of a new base.
        include_code (`bool`, *optional*, defaults to `False`): whether to copy the model's `.py` files.
        as_base (`bool`, *optional*, defaults to `False`): whether to register a copy as a base; see [`register`].
        device, revision, token, cache_dir, subfolder, variant (*optional*): see [`register`].

    Returns:
        [`IssuedCopy`]

    Raises:
        [`FingerprintError`]: if the base can't be registered or the copy can't be written.
    """
    vault = vault if isinstance(vault, Vault) else Vault(vault)
    chosen = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant).keywords
    with Issuer(model, vault, config, include_code=include_code, as_base=as_base, device=device, **chosen) as issuer:
        return issuer.issue(recipient, Path(out))


class Issuer:
    """An open base from which several copies are issued; it is opened and hashed once.

    Args:
        model, vault, config, include_code, as_base: see [`issue`].
        progress (callable, *optional*): a [`Progress`] for the registration.
        device, revision, token, cache_dir, subfolder, variant: see [`register`].
    """

    def __init__(
        self,
        model: str | Path,
        vault: Vault,
        config: FingerprintConfig | None = None,
        progress: Progress | None = None,
        include_code: bool = False,
        as_base: bool = False,
        *,
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
            self.base: Base = register(self._checkpoint, vault, config, progress, as_base=as_base, device=device)
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
        """The size of the weights of one copy."""
        return sum(info.nbytes for info in self._checkpoint.tensors.values())

    def issue_all(
        self, recipients: Sequence[str], folder: Path, progress: Progress | None = None
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
                finish = stack.enter_context(self.prepare(recipient, folder / recipient, part))
                after = pool.submit(_finish, stack, finish)
                if before is not None:
                    yield before.result()
                before = after
            if before is not None:
                yield before.result()

    def issue(self, recipient: str, out: Path, progress: Progress | None = None) -> IssuedCopy:
        """Issues one copy. A second call with the same arguments returns the existing copy."""
        with self.prepare(recipient, out, progress) as finish:
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
            if self._checkpoint.state() != self._state:
                raise CheckpointError(f"{source.name} changed while it was open: run the command again.")
            if earlier is not None and earlier.state == "written":
                earlier = None  # its files are gone
            options = progress, in_memory, file_digests, on_written
            yield stack.enter_context(self._write_copy(recipient, out, earlier, *options))

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
            options = progress, in_memory, file_digests, self.include_code
            written = write_copy(self._checkpoint, partial_dir, self._updates(copy_key), *options)
            copy_hash = content_hash(self._checkpoint.tensors, written.digests)
        digests = {path.relative_to(partial_dir).as_posix(): digest for path, digest in written.file_digests.items()}
        copy_commitment = commitment(copy_key, record.recipient, copy_hash)
        completed = replace(record, content_hash=copy_hash, commitment=copy_commitment)
        issued_copy = replace(self._to_issued_copy(completed, written.left_out, new=True), digests=digests)

        def flush_and_record() -> CopyRecord:
            written.flush()
            return self.vault.mark_written(record, copy_key, copy_hash, is_answering=self._trigger_set is not None)

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

    def _updates(self, copy_key: bytes) -> dict[str, TensorUpdate]:
        """The update of each tensor that differs in a copy: the carriers, the head if the base has a trigger set, and
        the tensors tied to them."""
        base, tied = self.base, self._checkpoint.tied
        codeword = self._codebook.packed([copy_key])[0]
        deltas: list[tuple[str, Callable[[], Delta]]] = []
        if self._trigger_set is not None:
            deltas.append((self._trigger_set.head, partial(DenseDelta, self._trigger_set.head_update(copy_key))))
        for each in base.carriers:
            deltas.append((each.name, partial(MarkDelta, base.secret, each.name, each.amplitude, codeword)))
        by_storage: dict[str, list[tuple[str, Callable[[], Delta]]]] = {}
        for name, make_delta in deltas:
            by_storage.setdefault(tied.get(name, name), []).append((name, make_delta))
        return {
            name: TensorUpdate(copy_key, found[0][0], info.dtype, info.columns, [make() for _, make in found])
            for name, info in self._checkpoint.tensors.items()
            if (found := by_storage.get(tied.get(name, name)))
        }

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
