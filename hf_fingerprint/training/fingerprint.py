"""A recipient's mark to train into a model, made in the vault before training; the trained copy is recorded after.

```python
fingerprint = Fingerprint("org/model", "alice", vault="vault")  # the base, or a copy issued before
...  # train with FingerprintCallback, FingerprintTask or DeepMarksLoss
fingerprint.record("trained")  # from now on an ordinary copy
```
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from filelock import FileLock

from hf_fingerprint.checkpoints import Checkpoint, open_checkpoint
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.registration import AncestorInput, lookup_base, open_base, register
from hf_fingerprint.registration.content import weights_hash
from hf_fingerprint.training.frozen_carriers import check_frozen, mark_frozen_carriers, trained_parameters
from hf_fingerprint.training.mark_check import check_mark
from hf_fingerprint.training.model_carriers import LocatedCarriers, locate_carriers
from hf_fingerprint.training.processes import is_first_process, run_on_first_process
from hf_fingerprint.training.regularizer import Regularizer, parameter_shapes
from hf_fingerprint.training.trained_copy import TrainedCopy
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
    find_begun_copy,
)


@dataclass(frozen=True)
class _SharedInputs:
    """The part of a fingerprint that every process needs: plain numbers, broadcast by the first process."""

    carriers: LocatedCarriers
    target: np.ndarray
    reference: np.ndarray


class Fingerprint:
    """A recipient's mark for training. Nothing is read or recorded before [`Fingerprint.bind`].

    With several processes only the first one uses the vault, so the other machines do not need it.

    Args:
        model (`str` or `Path`): the starting point of the training: the base, which is registered if it is new, or a
            copy issued from this vault, whose mark the training then preserves.
        recipient (`str`): the copy's recipient.
        vault ([`Vault`], `str` or `Path`): the vault. It may be locked.
        config ([`FingerprintConfig`], *optional*): configuration for a base that is not registered yet.
        as_base (`bool`, *optional*, defaults to `False`): register a model that carries a base's mark, but is not a
            recorded copy, as a separate base; see [`register`].
        ancestor (`str`, `Path`, `torch.nn.Module`, mapping or `False`, *optional*): the public model that the base was
            fine-tuned from; see [`register`]. A training that starts from a copy takes none.
    """

    def __init__(
        self,
        model: str | Path,
        recipient: str,
        vault: Vault | str | Path,
        config: FingerprintConfig | None = None,
        as_base: bool = False,
        ancestor: AncestorInput = None,
    ):
        self.source, self.recipient = model, canonical_recipient(recipient)
        self.config, self.as_base, self.ancestor = config, as_base, ancestor
        self._vault_or_path = vault
        self._shared_inputs: _SharedInputs | None = None
        self._base: Base | None = None
        self._record: CopyRecord | None = None
        self._copy_key: bytes | None = None
        self._lock: FileLock | None = None
        self._labeled_state: str | None = None
        self._trained: frozenset[str] = frozenset()
        self._frozen: tuple[str, ...] = ()  # carriers by their names in the base; in the first process
        self._bits: np.ndarray | None = None

    def __reduce__(self) -> NoReturn:
        raise FingerprintError("A fingerprint holds secrets and can't be pickled: create it again from the vault.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fingerprint":
        return self

    def __repr__(self) -> str:
        return f"Fingerprint(model={str(self.source)!r})"

    @property
    def vault(self) -> Vault:
        """The vault, opened on first use."""
        if not isinstance(self._vault_or_path, Vault):
            self._vault_or_path = Vault(self._vault_or_path)
        return self._vault_or_path

    def bind(self, model: torch.nn.Module, optimizer: Any = None) -> Regularizer:
        """The loss term that trains the mark into a model. Call it on every process.

        It covers the carriers that train now, whatever is frozen or unfrozen later. A warning counts the others, which
        [`Fingerprint.record`] marks.

        Args:
            model (`torch.nn.Module`): the base's or the copy's model, wrapped or not.
            optimizer (`torch.optim.Optimizer`, *optional*): parameters that it lacks do not train; by default those
                with `requires_grad` do.

        Raises:
            [`FingerprintError`]: if the model does not fit the base, or its trained carriers hold less than half of
                the predicted score.
        """
        shapes, trained = parameter_shapes(model), trained_parameters(model, optimizer)
        is_first_bind = self._shared_inputs is None
        if self._shared_inputs is None or trained != self._trained:
            self._shared_inputs = run_on_first_process(lambda: self._prepare(shapes, trained))
            self._trained = trained
        inputs = self._shared_inputs
        maps, energy = inputs.carriers.maps(), inputs.carriers.energy()
        target, reference = torch.from_numpy(inputs.target), torch.from_numpy(inputs.reference)
        try:
            return Regularizer(model, maps, target, reference, energy)
        except FingerprintError:
            if is_first_bind:  # no training began, so release the lock for the next attempt
                self._shared_inputs = self._base = None
                self._release_lock()
            raise

    def check_output_folder(self, folder: Path) -> None:
        """Raises an error if an output folder, which may be pushed, contains a vault or an identity or is in one."""

        def check() -> None:
            check_outside_vaults(folder)
            check_holds_no_vault(folder, "the output folder", self.vault.folder, include_identities=True)

        run_on_first_process(check)

    def record(self, folder: str | Path, images: str | Path | None = None) -> TrainedCopy | None:
        """Records a trained model as this recipient's copy, if its mark traces.

        Call it with the folder or file that the recipient will get. Carriers that did not train get their mark there,
        in closed form. If the base has a trigger set, the model's head is changed to predict the recipient's trigger
        labels; see [`embed_trigger_labels`]. After an interruption, the same call completes the work. Only the first
        of several processes does this, and the others get `None`.

        Args:
            folder (`str` or `Path`): the saved model.
            images (`str` or `Path`, *optional*): a folder of ordinary unlabeled images whose predictions should not
                change; by default synthetic images.

        Raises:
            [`FingerprintError`]: if the mark does not trace. Nothing is recorded or changed then.
        """
        return self._record_copy(Path(folder).absolute(), images) if is_first_process() else None

    def _prepare(self, shapes: dict[str, tuple[int, ...]], trained: frozenset[str]) -> _SharedInputs:
        """Prepares the base, the record, the codeword and the reference signal, in the first process."""
        with open_checkpoint(self.source) as checkpoint:
            base, issued_copy = self._find_start(checkpoint)
            with open_base(base, self.vault) as original:
                carriers, frozen = locate_carriers(base, original, shapes).split(trained)
                check_frozen(base, carriers, frozen, is_copy=issued_copy is not None)
                reference = carriers.sums(original)
                if issued_copy is not None:  # the target is the copy's own signal: its key stays sealed
                    signal = carriers.sums(checkpoint) - reference
                    self._bits = signal + frozen.sums(checkpoint) - frozen.sums(original) > 0
                    target = signal / np.maximum(carriers.energy().numpy(), 1e-30)
        if self._base is None:
            self._begin(base, issued_copy)
        if self._copy_key is not None:
            target = base.codebook().codeword(self._copy_key).astype(np.float32)
            self._bits = target > 0
        self._frozen = tuple(c.name for c in frozen.carriers)
        return _SharedInputs(carriers, target, reference)

    def _find_start(self, checkpoint: Checkpoint) -> tuple[Base, CopyRecord | None]:
        """The base, which is registered if it is new, and the issued copy if the training begins with one."""
        if self._base is not None:
            return self._base, self._record if self._copy_key is None else None
        weights_digest = weights_hash(checkpoint, self.vault)
        same = [copy for copy in self.vault.copies() if copy.content_hash == weights_digest]
        if same and self.vault.base_with_hash(weights_digest) is None:
            if same[0].recipient != self.recipient:
                raise FingerprintError(
                    f"{self.source} is the copy of {same[0].recipient} and not of {self.recipient}: give the base, or "
                    f"train it for {same[0].recipient}."
                )
            if self.ancestor is not None:
                raise FingerprintError(
                    f"{self.source} is a copy, and an ancestor stands in the record of its base: leave out ancestor, "
                    f"or record it with `hf-fingerprint vault add MODEL --ancestor`."
                )
            return lookup_base(self.vault, same[0].base_id), same[0]
        found = register(checkpoint, self.vault, self.config, as_base=self.as_base, ancestor=self.ancestor)
        return found, None

    def _begin(self, base: Base, issued_copy: CopyRecord | None) -> None:
        """Takes the lock, and finds or makes the record."""
        self._lock = acquire_lock(  # two trainings must not write one record
            self.vault,
            base,
            f"training {self.recipient}",
            f"A copy of base {base.base_id} for {self.recipient} is being trained already, here or by another "
            f"process: record that one first, or wait for it.",
        )
        self._record = issued_copy
        if issued_copy is None:
            self._record, self._copy_key = begin_training(self.vault, base, self.recipient)
        self._base = base

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _record_copy(self, folder: Path, images: str | Path | None) -> TrainedCopy:
        if self._base is None or self._record is None or self._bits is None:
            raise FingerprintError(f"{folder} can't be recorded: train a model with this fingerprint first.")
        base, key = self._base, self._copy_key
        check_outside_vaults(folder)
        if folder.is_dir():
            check_holds_no_vault(folder, "the copy's folder", self.vault.folder, include_identities=True)
        check = partial(check_mark, folder, base, self.vault, self._bits)
        digest, score, agreement = check(() if key is None else self._frozen)  # an issued copy's are marked
        is_new, labeled = self._find_record(base, digest) is None, False
        if is_new and self._labeled_state is not None:
            labeled = self._labeled_state == _checkpoint_state(folder)
        if key is not None and is_new and not labeled:
            mark_frozen_carriers(folder, base, self.vault, self._frozen, key)
            labeled = embed_trigger_labels(folder, base, self.vault, key, images)
            if labeled:
                self._labeled_state = _checkpoint_state(folder)  # not embedded again if the rest is interrupted
        if self._frozen or labeled:
            digest, score, agreement = check()
        recorded = self._write_record(base, self._record, folder, digest, labeled)
        self._release_lock()
        commitment = recorded.commitment if recorded.content_hash == digest else None
        return TrainedCopy(
            self.recipient, folder, recorded.copy_id, base.base_id, digest, commitment, score, agreement, labeled
        )

    def _find_record(self, base: Base, weights_digest: str) -> CopyRecord | None:
        """This recipient's record with this content, if there is one."""
        copies = self.vault.copies(base.base_id, self.recipient)
        return next((c for c in copies if c.content_hash == weights_digest), None)

    def _write_record(self, base: Base, record: CopyRecord, folder: Path, digest: str, labeled: bool) -> CopyRecord:
        """Writes and returns this content's record: the training's own, a further one, or the issued copy's."""
        vault, key = self.vault, self._copy_key
        same = self._find_record(base, digest)
        if same is not None:
            if same.state == "written":
                vault.mark_issued(same.copy_id)
            return replace(same, state="issued")
        if key is None and vault.unlocked:
            key = vault.copy_key(record)
        if key is None:  # an issued copy that was trained further traces by its first record
            return record
        if record.state != "begun":
            again = find_begun_copy(vault, base, self.recipient, folder)
            record, _ = vault.begin_copy(base, self.recipient, folder, again, copy_key=key)
        self._record = vault.mark_written(record, key, digest, folder, is_answering=labeled, is_issued=True)
        return self._record


def _checkpoint_state(folder: Path) -> str:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.state()
