"""What a trace found, for people and for programs."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hf_fingerprint.extraction import Lineage
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import Fault


@dataclass(frozen=True)
class RecipientScore:
    """One copy's score.

    Attributes:
        recipient (`str`): whom the copy was made for.
        copy_id (`str`): its record in the vault, which tells several copies of one recipient apart.
        score (`float`): in standard deviations of an innocent's score.
        log10_false_accusation (`float`): decimal logarithm of a bound on the probability that any innocent in the
            vault would score so high in this trace, whatever was done to the suspect.
        accused (`bool`): whether that is at most alpha.
        base (`str`): the base it was made from.
        state (`str`): how far it got: `"begun"`, `"written"`, `"pushed"` or `"delivered"`; see [`delivery_state`]. That a
            copy was made for somebody is not that they leaked it: one that never left the house is `"begun"`.
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
    """A base that the suspect was read against.

    Attributes:
        base (`str`): its id.
        source (`str`): where it was registered from.
        copies (`int`): how many of its copies were tested.
        reason (`str`): what it has to do with the suspect.
    """

    base: str
    source: str
    copies: int
    reason: str


@dataclass(frozen=True)
class SkippedSource:
    """A base, or a file of the suspect, that was not read.

    Attributes:
        name (`str`): the base's id, or the file's name, which may be hostile.
        source (`str`): where the base was registered from; of a file, the suspect.
        reason (`str`): why.
    """

    name: str
    source: str
    reason: str


@dataclass(frozen=True)
class RecordedCopy:
    """A copy on record with the suspect's very content hash. No evidence: whoever writes records can write any hash.

    Attributes:
        recipient, copy_id, base, state, created (`str`): see [`RecipientScore`].
    """

    recipient: str
    copy_id: str
    base: str
    state: str
    created: str


@dataclass(frozen=True)
class TraceResult:
    """What a trace found.

    Attributes:
        suspect (`str`): the suspect's path or Hub id.
        revision (`str` or `None`): its commit, if it came from the Hub.
        base (`str` or `None`): the base it was read against; of several, that of the surest accusation, else the
            likeliest; `None` if it was read against none.
        base_source (`str` or `None`): where that came from.
        outcome ([`Outcome`]): accused, nobody, not comparable or not readable.
        reason (`str` or `None`): why it is not comparable or not readable, and what to do.
        accused (`tuple[RecipientScore, ...]`): those whose bound is at most alpha, surest first; often nobody.
        scores (`tuple[RecipientScore, ...]`): the accused, and with `all_scores` everybody else, highest first: don't
            publish these, since they help an attacker to build a suspect that accuses an innocent.
        recipients_tested (`int`): copies that were tested.
        recipients_covered (`int`): copies that the bound pays for, of all bases read: those tested, and for a claim
            all in the vault.
        tensors_matched (`int`): carriers found in the suspect.
        tensors_marked (`int`): carriers there are.
        weights_read (`int`): weights compared.
        weights_dropped (`int`): weights that said nothing (exactly 0, or not finite).
        lineage ([`Lineage`]): whether the suspect descends from the base at all.
        alpha (`float`): the bound on accusing any innocent.
        threshold (`float`): the score from which on this suspect's reading accuses, in the first round.
        rounds (`int`): rounds of joint decoding.
        looks (`int`): how often the reading was judged; each look has read more than the one before.
        bytes_fetched (`int`): bytes of a suspect on the Hub that were fetched by ranges; 0 for one that was read
            whole.
        bytes_total (`int`): size of its weights, if it was read by ranges.
        requests (`int`): HTTP exchanges that it took.
        tensors_aligned (`int`): carriers whose rows or columns were put back in the base's order first.
        complete (`bool`): whether all carriers found were read. If not, further colluders may show in the rest.
        bases_read (`tuple[BaseRead, ...]`): the bases it was read against, the likeliest first.
        bases_not_read (`tuple[NotRead, ...]`): the other bases of the vault, and why they were not read.
        on_record (`tuple[OnRecord, ...]`): copies whose content hash is the suspect's.
        files (`tuple[str, ...]`): the weight files that were read.
        files_not_read (`tuple[NotRead, ...]`): the suspect's other weight files, and why they were not read.
        tensors_left_out (`int`): tensors of the suspect that can't be read, whatever they hold.
        rows_not_used (`tuple[Fault, ...]`): rows of the vault that can't be used. Where nobody is accused and one of
            them may be the leaker's, the outcome is "not readable".
    """

    suspect: str
    revision: str | None
    base: str | None
    base_source: str | None
    outcome: Outcome
    accused: tuple[RecipientScore, ...]
    scores: tuple[RecipientScore, ...]
    recipients_tested: int
    recipients_covered: int
    tensors_matched: int
    tensors_marked: int
    weights_read: int
    weights_dropped: int
    lineage: Lineage
    alpha: float
    threshold: float
    rounds: int
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
    files_not_read: tuple[SkippedSource, ...] = ()
    tensors_left_out: int = 0
    rows_not_used: tuple[Fault, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: numbers, strings, lists; a threshold that nothing can reach is `None`."""
        found = asdict(self)
        found["threshold"] = self.threshold if math.isfinite(self.threshold) else None
        found["outcome"] = str(self.outcome)
        return found
