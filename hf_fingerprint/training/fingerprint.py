"""One recipient's mark, to be trained into a model: from the vault before the first step, into the vault after the
last.

```python
fingerprint = Fingerprint("org/model", "alice", vault="vault")  # the base, or a copy issued before
...  # train with it: FingerprintCallback, FingerprintTask, DeepMarksLoss
fingerprint.record("trained")  # an ordinary copy
```
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from filelock import FileLock

from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.codes import prove_codeword
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.extraction import extract
from hf_fingerprint.registration import lookup_base, open_base, register, weights_hash
from hf_fingerprint.training.model_carriers import LocatedCarriers, locate_carriers
from hf_fingerprint.training.processes import is_first_process, run_on_first_process
from hf_fingerprint.training.regularizer import Regularizer, parameter_locations
from hf_fingerprint.training.trigger_labels import embed_trigger_labels
from hf_fingerprint.vault import (
    Base,
    CopyRecord,
    Vault,
    acquire_lock,
    begin_training,
    canonical_recipient,
    check_holds_no_vault,
    check_outside_vaults,
    copies_in_training,
)


@dataclass(frozen=True)
class RecordedCopy:
    """A trained copy in the vault's record.

    Attributes:
        recipient (`str`): whose it is.
        path (`Path`): its folder.
        copy_id (`str`): its record in the vault.
        base_id (`str`): the base it is read against.
        content_hash (`str`): the hash of its weights.
        commitment (`str` or `None`): see [`commitment`]; `None` for an issued copy that was trained further, unless
            the vault was unlocked: its record stays the one it was issued with.
        score (`float`): in standard deviations of an innocent's; a trace reports the one of several scores that
            proves most, so its figure may differ a little.
        agreement (`float`): the share of positions that read as the recipient's bits.
        has_trigger_labels (`bool`): whether its answers were bound to the recipient as it was recorded; not so without
            questions, or for an issued copy that was trained further, which keeps as much as training leaves.
    """

    recipient: str
    path: Path
    copy_id: str
    base_id: str
    content_hash: str
    commitment: str | None
    score: float
    agreement: float
    has_trigger_labels: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class _SharedInputs:
    """What every process needs of a fingerprint: plain numbers, sent from the first process in memory."""

    carriers: LocatedCarriers
    target: np.ndarray
    reference: np.ndarray


class Fingerprint:
    """One recipient's mark for training. Nothing is read or recorded before it is bound to a model.

    With several processes only the first one touches the vault, so it need not be on the others' machines.

    Args:
        model (`str` or `Path`): what the training starts from: the base (registered at once if it is new), or a copy
            issued from this vault, whose mark is then held.
        recipient (`str`): whose copy it will be.
        vault ([`Vault`], `str` or `Path`): the vault; it need not be unlocked.
        config ([`FingerprintConfig`], *optional*): for a base that isn't registered yet.
        as_base (`bool`, *optional*, defaults to `False`): registers a model that carries a base's mark, but is no copy
            on record, as a base of its own; see [`register`].
    """

    def __init__(
        self,
        model: str | Path,
        recipient: str,
        vault: Vault | str | Path,
        config: FingerprintConfig | None = None,
        as_base: bool = False,
    ):
        self.source, self.recipient = model, canonical_recipient(recipient)
        self.config, self.as_base = config, as_base
        self._vault_or_path = vault
        self._shared_inputs: _SharedInputs | None = None
        self._base: Base | None = None
        self._record: CopyRecord | None = None
        self._copy_key: bytes | None = None
        self._lock: FileLock | None = None
        self._labeled_state: str | None = None

    def __reduce__(self) -> NoReturn:
        raise FingerprintError("A fingerprint holds secrets and is never pickled: make a new one from the vault.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fingerprint":
        return self

    def __repr__(self) -> str:
        return f"Fingerprint(model={str(self.source)!r})"

    @property
    def vault(self) -> Vault:
        """The vault, opened at the first use."""
        if not isinstance(self._vault_or_path, Vault):
            self._vault_or_path = Vault(self._vault_or_path)
        return self._vault_or_path

    def bind(self, model: torch.nn.Module) -> Regularizer:
        """Finds the carriers in a model and makes the term that trains the mark into it.

        Args:
            model (`torch.nn.Module`): the base's model, or the copy's, wrapped or not. Call it on every process.

        Raises:
            [`FingerprintError`]: in one sentence, what is in the way.
        """
        parameter_shapes = {name: tuple(_unsharded_shape(place)) for name, place in parameter_locations(model).items()}
        is_first_bind = self._shared_inputs is None
        if self._shared_inputs is None:
            self._shared_inputs = run_on_first_process(lambda: self._prepare(parameter_shapes))
        inputs = self._shared_inputs
        maps, energy = inputs.carriers.maps(), inputs.carriers.energy()
        target, reference = torch.from_numpy(inputs.target), torch.from_numpy(inputs.reference)
        try:
            return Regularizer(model, maps, target, reference, energy)
        except FingerprintError:
            if is_first_bind:  # nothing is being trained, so the next attempt isn't a second training
                self._shared_inputs = None
                self._release_lock()
            raise

    def check_output_folder(self, folder: Path) -> None:
        """Refuses a folder for a training's output, which may be pushed, if a vault or an identity is in it, or it is
        in a vault."""

        def check() -> None:
            check_outside_vaults(folder)
            check_holds_no_vault(folder, "the output folder", self.vault.folder, include_identities=True)

        run_on_first_process(check)

    def record(self, folder: str | Path, images: str | Path | None = None) -> RecordedCopy | None:
        """Records a trained model as this recipient's copy, once it reads as such.

        Call it with the folder (or file) that was saved and will be handed over. Where the base has questions, its
        head is changed there to answer them for the recipient; see [`embed_trigger_labels`]. With several processes the first
        one does it, whether or not the others call it too; they get `None`.

        Args:
            folder (`str` or `Path`): what was saved.
            images (`str` or `Path`, *optional*): a folder of ordinary images, unlabelled, whose answers are to stay;
                synthetic ones stand in for them.

        Raises:
            [`FingerprintError`]: if the mark doesn't trace in it; nothing is recorded or changed then.
        """
        return self._record_copy(Path(folder).absolute(), images) if is_first_process() else None

    def _prepare(self, parameter_shapes: dict[str, tuple[int, ...]]) -> _SharedInputs:
        """What the first process works out: the base, the record, the codeword, the reference's reading."""
        issued_copy: CopyRecord | None = None
        with open_checkpoint(self.source) as checkpoint:
            weights_digest = weights_hash(checkpoint, self.vault)
            base = self.vault.base_with_hash(weights_digest)
            if base is None:
                issued_copy = next((copy for copy in self.vault.copies() if copy.content_hash == weights_digest), None)
            if issued_copy is not None:
                if issued_copy.recipient != self.recipient:
                    raise FingerprintError(
                        f"{self.source} is the copy of {issued_copy.recipient} and not of {self.recipient}: give the base, "
                        f"or train it for {issued_copy.recipient}."
                    )
                base = lookup_base(self.vault, issued_copy.base_id)
            else:
                base = register(checkpoint, self.vault, self.config, as_base=self.as_base)
            with open_base(base, self.vault) as original:
                carriers = locate_carriers(base, original, parameter_shapes)
                reference = carriers.sums(original)
                if issued_copy is not None:  # what training is to keep as it is; the copy's key stays sealed
                    target = (carriers.sums(checkpoint) - reference) / np.maximum(carriers.energy().numpy(), 1e-30)
        self._lock = acquire_lock(  # or two trainings would write one record
            self.vault,
            base,
            f"training {self.recipient}",
            f"A copy of base {base.base_id} for {self.recipient} is being trained already, here or by another "
            f"process: record that one first, or wait for it.",
        )
        if issued_copy is None:
            self._record, self._copy_key = begin_training(self.vault, base, self.recipient)
            target = base.codebook().codeword(self._copy_key).astype(np.float32)
        else:
            self._record = issued_copy
        self._base = base
        return _SharedInputs(carriers, target, reference)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _record_copy(self, folder: Path, images: str | Path | None) -> RecordedCopy:
        if self._base is None or self._record is None or self._shared_inputs is None:
            raise FingerprintError(f"{folder} can't be recorded: nothing was trained with this fingerprint yet.")
        base, record, bits = self._base, self._record, self._shared_inputs.target > 0
        check_outside_vaults(folder)
        if folder.is_dir():
            check_holds_no_vault(folder, "the copy's folder", self.vault.folder, include_identities=True)
        weights_digest, score, agreement = self._check_mark(folder, base, bits)
        is_new = self._find_record(base, weights_digest) is None
        has_trigger_labels = (
            is_new and self._labeled_state is not None and self._labeled_state == _checkpoint_state(folder)
        )
        if self._copy_key is not None and is_new and not has_trigger_labels:
            has_trigger_labels = embed_trigger_labels(folder, base, self.vault, self._copy_key, images)
            if has_trigger_labels:
                self._labeled_state = _checkpoint_state(folder)  # not bound again, if what follows is cut off
                weights_digest, score, agreement = self._check_mark(folder, base, bits)
        recorded = self._write_record(base, record, folder, weights_digest, has_trigger_labels)
        self._release_lock()
        recorded_commitment = recorded.commitment if recorded.content_hash == weights_digest else None
        return RecordedCopy(
            self.recipient,
            folder,
            recorded.copy_id,
            base.base_id,
            weights_digest,
            recorded_commitment,
            score,
            agreement,
            has_trigger_labels,
        )

    def _check_mark(self, folder: Path, base: Base, bits: np.ndarray) -> tuple[str, float, float]:
        """A model's content hash, the score of some bits in it, and the share of them that it agrees with."""
        with open_checkpoint(folder) as copy, open_base(base, self.vault) as original:
            reading = extract(base, original, copy)
            score, proven = prove_codeword(
                base.codebook(), np.packbits(bits), reading.values, reading.mass, base.recipients_planned, base.alpha
            )
            agreement = float(((reading.values > 0) == bits)[reading.mass > 0].mean()) if reading.mass.any() else 0.0
            if not proven:
                raise FingerprintError(
                    f"{folder} does not carry the mark that was trained (score {score:.1f}, {agreement:.0%} of its "
                    f"bits): give the trained model, or train longer or with more strength; nothing was recorded."
                )
            return content_hash(copy.tensors, digest_tensors(copy)), score, agreement

    def _find_record(self, base: Base, weights_digest: str) -> CopyRecord | None:
        """The record of this recipient's that has this content, if there is one."""
        copies = self.vault.copies(base.base_id, self.recipient)
        return next((c for c in copies if c.content_hash == weights_digest), None)

    def _find_begun_record(self, base: Base, folder: Path) -> CopyRecord | None:
        """The further record for this folder that an earlier attempt began, if it was cut off."""
        trained, copies = copies_in_training(self.vault), self.vault.copies(base.base_id, self.recipient)
        begun = [c for c in copies if c.state == "begun" and c.out == str(folder) and c.copy_id not in trained]
        return begun[-1] if begun else None

    def _write_record(
        self, base: Base, record: CopyRecord, folder: Path, weights_digest: str, has_trigger_labels: bool
    ) -> CopyRecord:
        """The record that stands for this content: the training's own, a further one, or that of the copy it was."""
        vault, key = self.vault, self._copy_key
        same = self._find_record(base, weights_digest)
        if same is not None:
            if same.state == "written":
                vault.mark_issued(same.copy_id)
            return replace(same, state="issued")
        if key is None and vault.unlocked:
            key = vault.copy_key(record)
        if key is None:  # an issued copy trained further: it traces by the record it was issued with
            return record
        if record.state != "begun":
            again = self._find_begun_record(base, folder)
            record, _ = vault.begin_copy(base, self.recipient, folder, again, copy_key=key)
        recorded = vault.mark_written(
            record, key, weights_digest, folder, is_answering=has_trigger_labels, is_issued=True
        )
        self._record = recorded
        return recorded


def _checkpoint_state(folder: Path) -> str:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.state()


def _unsharded_shape(place: tuple[torch.nn.Module, str]) -> torch.Size:
    parameter = getattr(*place)
    return getattr(parameter, "ds_shape", parameter.shape)
