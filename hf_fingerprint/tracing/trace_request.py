"""The request of a trace, and the copies that it tests."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints import NO_OPTIONS, Checkpoint, HubOptions
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.errors import VaultError
from hf_fingerprint.progress import Progress
from hf_fingerprint.tracing.ancestor_files import NO_ANCESTOR, AncestorFiles, AncestorSelection
from hf_fingerprint.tracing.groups import BaseSelection
from hf_fingerprint.tracing.result import ComparedBase
from hf_fingerprint.tracing.vault_records import VaultRecords
from hf_fingerprint.tracing.verdict import Candidates
from hf_fingerprint.vault import (
    Base,
    CopyTable,
    DeliveryStates,
    Fault,
    RowError,
    Vault,
    VaultRows,
    copies_in_training,
    same_recipient,
)


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ReadTarget:
    """A record of a base that a suspect is read against.

    Attributes:
        candidates ([`Candidates`]): its copies.
        original ([`Checkpoint`]): the base's open files.
        reason (`str`): why it is read.
        ancestor ([`AncestorFiles`]): the base's ancestor, which is open if it can be had.
    """

    candidates: Candidates
    original: Checkpoint
    reason: str
    ancestor: AncestorFiles = NO_ANCESTOR

    def describe(self) -> ComparedBase:
        """The base as the result lists it."""
        base, ancestor = self.candidates.base, self.ancestor
        copies = len(self.candidates.copies)
        return ComparedBase(base.base_id, base.source, copies, self.reason, ancestor.place, ancestor.problem)


@dataclass(frozen=True)
class TraceRequest:
    """The parameters of a trace, and the records that it opened.

    Attributes:
        records ([`VaultRecords`]): the records of the unlocked vault.
        base_ref (`str`, [`ModelInput`] or `None`): the base's id or the base, if the caller names it.
        recipient (`str` or `None`): the recipient of a claim, whose copies alone are tested.
        all_scores (`bool`): whether the result holds the scores of recipients who are not accused.
        progress (callable or `None`): a [`Progress`].
        options ([`HubOptions`]): which files of the suspect; its token and cache hold for bases too.
        device (`str`, `torch.device` or `None`): where models run.
        ancestors ([`AncestorSelection`] or `None`): opens the bases' ancestors; `None` to use none.
    """

    records: VaultRecords
    base_ref: ModelInput | None = None
    recipient: str | None = None
    all_scores: bool = False
    progress: Progress | None = None
    options: HubOptions = NO_OPTIONS
    device: "str | torch.device | None" = None
    ancestors: AncestorSelection | None = None

    @property
    def vault(self) -> Vault:
        """The unlocked vault."""
        return self.records.vault

    @property
    def rows(self) -> VaultRows:
        """The vault's bases and records of copies, and its rows that can't be used."""
        return self.records.rows

    @property
    def bases(self) -> list[Base]:
        """The vault's bases; a [`VaultError`] if there is none."""
        if self.rows.bases:
            return self.rows.bases
        if self.rows.faults:
            raise RowError(self.rows.faults[0])
        raise VaultError(f"{self.vault.folder} holds no base, so there is nobody to trace: issue copies first.")

    def faults(self, include_unread: bool) -> tuple[Fault, ...]:
        """The rows of the vault that can't be used.

        Args:
            include_unread (`bool`): also opens the records of other bases, which shows records with a wrong base id.
        """
        if include_unread:
            for base in self.bases:
                self.records.open(base.base_id)
        return self.records.faults

    def targets(self, found: BaseSelection) -> list[ReadTarget]:
        """The records to read, each with the copies to test; if no base has any copies, the first record.

        A claim pays for all copies in the vault, since it may have been chosen after a trace.

        Raises:
            [`VaultError`]: if a recipient is named who has no copy of these bases, or the caller gave the ancestor of
                none of them.
        """
        training = copies_in_training(self.vault)  # their checkpoints may leak before the copies are recorded
        n_copies = None if self.recipient is None else len(self.rows.copies)
        targets = []
        for group in found.groups:
            for base in group.records:
                opened = self.records.open(base.base_id)
                assert isinstance(opened.copies, CopyTable)
                tested = self._tested(opened.copies, training)
                copies, keys = opened.copies.take(tested), opened.keys.take(tested)
                candidates = Candidates(base, copies, keys, n_copies, DeliveryStates(self.vault))
                targets.append(ReadTarget(candidates, group.original, group.reason))
        if self.recipient is not None and not any(each.candidates.copies for each in targets):
            raise VaultError(
                f"{self.vault.folder} has no copy of base {targets[0].candidates.base.base_id} for {self.recipient}, "
                f"and this suspect resembles that base: see `hf-fingerprint recipients`, or give another --base."
            )
        tested_bases = [each for each in targets if each.candidates.copies]
        if self.ancestors is None:
            return tested_bases or targets[:1]
        self.ancestors.open([each.candidates.base for each in tested_bases], self.bases)
        return [replace(r, ancestor=self.ancestors.of(r.candidates.base)) for r in tested_bases] or targets[:1]

    def _tested(self, copies: CopyTable, training: Collection[str]) -> np.ndarray:
        """The indices of the copies to test: finished ones and those in training, of the named recipient if any."""
        tested = ~copies.begun
        for number in np.flatnonzero(copies.begun).tolist():
            tested[number] = copies[number].copy_id in training
        if self.recipient is not None:
            tested &= [same_recipient(copy.recipient, self.recipient) for copy in copies]
        return np.flatnonzero(tested)
