"""The result of a trace."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hf_fingerprint.checkpoints.formats.contained import Container
from hf_fingerprint.extraction import Lineage
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr
from hf_fingerprint.tracing.trace_table import trace_blocks
from hf_fingerprint.vault import Fault


_UNREAD = Lineage(False, 0.0, 0.0)


@dataclass(frozen=True)
class RecipientScore:
    """One copy's score.

    Attributes:
        recipient (`str`): the recipient of the copy.
        copy_id (`str`): its record in the vault; a recipient may have several copies.
        score (`float`): the score, in standard deviations of an innocent's.
        log10_false_accusation (`float`): decimal logarithm of a bound on the probability that any innocent in the
            vault would score so high in this trace, whatever was done to the suspect.
        accused (`bool`): whether that bound is at most alpha.
        base (`str`): the id of the base it was made from.
        state (`str`): its delivery state: `"begun"`, `"written"`, `"pushed"` or `"delivered"`; see
            [`delivery_state`]. A copy that is `"begun"` was never delivered, so its recipient may not be the leaker.
        created (`str`): when it was made, UTC, ISO 8601.
    """

    recipient: str
    copy_id: str
    score: float
    log10_false_accusation: float
    accused: bool
    base: str = ""
    state: str = ""
    created: str = ""


@dataclass(frozen=True)
class ComparedBase:
    """A base that the suspect was compared with.

    Attributes:
        base (`str`): its id.
        source (`str`): where it was registered from.
        copies (`int`): how many of its copies were tested.
        reason (`str`): why it was compared.
        ancestor (`str` or `None`): the recorded ancestor, with its revision; `None` if none is on record.
        ancestor_problem (`str` or `None`): why the ancestor was not used; `None` if it was. Without it, copies whose
            difference from the ancestor was truncated may be missed; a verbatim copy is found all the same.
    """

    base: str
    source: str
    copies: int
    reason: str
    ancestor: str | None = None
    ancestor_problem: str | None = None


@dataclass(frozen=True)
class SkippedSource:
    """A base, or a file of the suspect, that was not read.

    Attributes:
        name (`str`): the base's id, or the file's name, which may be hostile.
        source (`str`): where the base was registered from, or the suspect for a file.
        reason (`str`): why it was not read.
    """

    name: str
    source: str
    reason: str


@dataclass(frozen=True)
class RecordedCopy:
    """A copy whose recorded content hash is the suspect's. This is no evidence, since an issuer can record any hash.

    Attributes:
        recipient, copy_id, base, state, created (`str`): see [`RecipientScore`].
    """

    recipient: str
    copy_id: str
    base: str
    state: str
    created: str


@dataclass(frozen=True, kw_only=True)
class TraceResult(PrintableResult):
    """The result of a trace.

    Attributes:
        suspect (`str`): the suspect's path or Hub id.
        revision (`str` or `None`): its commit, if it came from the Hub.
        base (`str` or `None`): the base that it was compared with; of several, the one of the surest accusation, or
            else the likeliest one. `None` if there was no such base.
        base_source (`str` or `None`): where that base was registered from.
        outcome ([`Outcome`]): accused, nobody, not comparable or not readable.
        reason (`str` or `None`): why it is not comparable or not readable, and what to do.
        accused (`tuple[RecipientScore, ...]`): copies whose bound is at most alpha, surest first.
        scores (`tuple[RecipientScore, ...]`): the accused and, with `all_scores`, all other copies, surest first.
            Don't publish the others: they help an attacker to build a suspect that accuses an innocent.
        recipients_tested (`int`): copies that were tested.
        recipients_covered (`int`): copies that the bound pays for: those tested, or for a claim all in the vault.
        tensors_matched (`int`): carriers found in the suspect.
        tensors_marked (`int`): carriers of the base.
        weights_read (`int`): weights compared.
        weights_dropped (`int`): weights left out because they are exactly 0 or not finite.
        lineage ([`Lineage`]): whether the suspect descends from the base.
        alpha (`float`): the bound on the probability of accusing any innocent.
        threshold (`float`): the score from which the first round accuses.
        rounds (`int`): rounds of joint decoding.
        looks (`int`): interim looks; each has read more than the one before.
        bytes_fetched (`int`): bytes of a suspect on the Hub that were fetched by ranges; 0 if it was downloaded.
        bytes_total (`int`): size of its weights, if it was read by ranges.
        requests (`int`): HTTP requests.
        tensors_aligned (`int`): carriers whose rows or columns were aligned with the base's.
        complete (`bool`): whether all matched carriers were read. If not, the rest may show further colluders.
        bases_read (`tuple[ComparedBase, ...]`): the bases that it was compared with, the likeliest first.
        bases_not_read (`tuple[SkippedSource, ...]`): the other bases of the vault, with reasons.
        on_record (`tuple[RecordedCopy, ...]`): copies whose recorded content hash is the suspect's.
        files (`tuple[str, ...]`): the weight files that were read.
        containers (`tuple[Container, ...]`): how the weights are stored: the format, the producer, the tensors and
            their types; one for each set of weight files.
        files_not_read (`tuple[SkippedSource, ...]`): the suspect's other weight files, with reasons.
        tensors_left_out (`int`): tensors of the suspect that can't be read.
        claim (`str` or `None`): the recipient that [`verify`] tested alone.
        rows_not_used (`tuple[Fault, ...]`): rows of the vault that can't be used. If nobody is accused and one of
            them may belong to the leaker, the outcome is "not readable".
    """

    suspect: str
    revision: str | None = None
    base: str | None = None
    base_source: str | None = None
    outcome: Outcome
    accused: tuple[RecipientScore, ...] = ()
    scores: tuple[RecipientScore, ...] = ()
    recipients_tested: int = 0
    recipients_covered: int = 0
    tensors_matched: int = 0
    tensors_marked: int = 0
    weights_read: int = 0
    weights_dropped: int = 0
    lineage: Lineage = _UNREAD
    alpha: float
    threshold: float = math.inf
    rounds: int = 0
    looks: int = 1
    bytes_fetched: int = 0
    bytes_total: int = 0
    requests: int = 0
    complete: bool = True
    tensors_aligned: int = 0
    reason: str | None = None
    bases_read: tuple[ComparedBase, ...] = ()
    bases_not_read: tuple[SkippedSource, ...] = ()
    on_record: tuple[RecordedCopy, ...] = ()
    files: tuple[str, ...] = ()
    containers: tuple[Container, ...] = ()
    files_not_read: tuple[SkippedSource, ...] = ()
    tensors_left_out: int = 0
    rows_not_used: tuple[Fault, ...] = ()
    claim: str | None = None

    def blocks(self) -> Iterator[Block]:
        """The lines and the table that show the result."""
        return trace_blocks(self)

    def __repr__(self) -> str:
        accused = tuple(dict.fromkeys(score.recipient for score in self.accused))
        bound = min((score.log10_false_accusation for score in self.accused), default=None)
        return one_line_repr(self, outcome=str(self.outcome), accused=accused, log10_false_accusation=bound)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types; an infinite threshold becomes `None`."""
        found = asdict(self)
        found["threshold"] = self.threshold if math.isfinite(self.threshold) else None
        found["outcome"] = str(self.outcome)
        return found
