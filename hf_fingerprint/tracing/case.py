"""What is asked of a trace, and which copies are tested for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import VaultError
from hf_fingerprint.tracing.groups import Found
from hf_fingerprint.tracing.result import BaseRead
from hf_fingerprint.tracing.verdict import Candidates
from hf_fingerprint.vault import (
    Base,
    Fault,
    Opened,
    RowError,
    Rows,
    Vault,
    copies_in_training,
    open_copies,
    same_recipient,
    standings,
)


Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Read:
    """A record of a base that a suspect is read against.

    Attributes:
        candidates ([`Candidates`]): its copies.
        original ([`Checkpoint`]): the base's open files.
        why (`str`): what the base has to do with the suspect.
    """

    candidates: Candidates
    original: Checkpoint
    why: str

    def describe(self) -> BaseRead:
        """For the result."""
        base = self.candidates.base
        return BaseRead(base.base_id, base.source, len(self.candidates.copies), self.why)


@dataclass(frozen=True)
class Case:
    """One trace of one suspect.

    Attributes:
        vault ([`Vault`]): the vault, unlocked.
        place (`str`, `Path` or `None`): the base, if the caller names it.
        recipient (`str` or `None`): whose copies alone are tested, as one claim.
        all_scores (`bool`): whether scores of those who are not accused are shown.
        advance (callable or `None`): told `(step, done, total)`.
        opened (`dict[str, Opened]`): the records of copies that were opened so far, by their base's id.
    """

    vault: Vault
    place: str | Path | None = None
    recipient: str | None = None
    all_scores: bool = False
    advance: Advance | None = None
    opened: dict[str, Opened] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> Rows:
        """The vault's bases and records of copies, and its rows that can't be used."""
        return self.vault.rows()

    @property
    def bases(self) -> list[Base]:
        """The vault's bases.

        Raises:
            [`VaultError`]: if there is none.
        """
        if self.rows.bases:
            return self.rows.bases
        if self.rows.faults:
            raise RowError(self.rows.faults[0])
        raise VaultError(f"{self.vault.folder} holds no base: nothing was issued from it, so nobody can be traced.")

    def faults(self, every: bool) -> tuple[Fault, ...]:
        """The rows of the vault that can't be used.

        Args:
            every (`bool`): whether records of bases that were not read are opened too: one that was given another
                base's id shows only then.
        """
        if every:
            for base in self.bases:
                self._open(base.base_id)
        unopened = [fault for each in self.opened.values() for fault in each.faults]
        return (*self.rows.faults, *unopened)

    def reads(self, found: Found) -> list[Read]:
        """The records to read, each with the copies to test; of bases without any copies, the first record.

        A claim pays for all copies in the vault: whoever makes one may have seen a trace, or know whom a model is
        like.

        Raises:
            [`VaultError`]: if a recipient is named who has no copy of these bases.
        """
        training = copies_in_training(self.vault)  # their checkpoints may have left the house before they are recorded
        everybody = None if self.recipient is None else len(self.rows.copies)
        reads = []
        for group in found.groups:
            for base in group.records:
                opened = self._open(base.base_id)
                tested = [
                    (copy, key)
                    for copy, key in zip(opened.copies, opened.keys, strict=True)
                    if (copy.state != "begun" or copy.copy_id in training)
                    and (self.recipient is None or same_recipient(copy.recipient, self.recipient))
                ]
                copies, keys = [copy for copy, _ in tested], [key for _, key in tested]
                states = standings(self.vault, copies)
                reads.append(Read(Candidates(base, copies, keys, everybody, states), group.original, group.why))
        if self.recipient is not None and not any(each.candidates.copies for each in reads):
            raise VaultError(
                f"{self.vault.folder} has no copy of base {reads[0].candidates.base.base_id} for {self.recipient}, "
                f"and this suspect resembles that base: see `hf-fingerprint recipients`, or give another --base."
            )
        return [each for each in reads if each.candidates.copies] or reads[:1]

    def _open(self, base_id: str) -> Opened:
        if base_id not in self.opened:
            self.opened[base_id] = open_copies(self.vault, self.rows.of(base_id))
        return self.opened[base_id]

    def stage(self, step: str, total: int) -> Callable[[int], None] | None:
        """What one step of the trace tells its progress."""
        advance = self.advance
        return None if advance is None else lambda done: advance(step, done, total)
