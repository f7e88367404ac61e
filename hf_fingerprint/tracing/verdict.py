"""Decodes extracted signals into a verdict on every copy, with a bound that covers all looks and all bases read.

An innocent's codeword is independent of the suspect, so for any score function h computed from the suspect alone, the
tail of the innocent's score is bounded. Look l has its own h, from the first `S_l` weights in an order that doesn't
depend on the data. This h is the same whether or not the trace stops before it, so the event "look l accuses an
innocent" has probability at most `alpha / (l (l + 1))`. By the union bound (alpha spending),

    P(any look accuses an innocent) <= sum over l of alpha / (l (l + 1)) = alpha sum of (1/l - 1/(l + 1)) <= alpha

for any stopping rule, even one that sees the scores. A further pass over tensors that were not compared is a further
look; shapes and values of base and suspect alone decide whether there may be one. In the same way k bases, or records
of one base, share alpha, `alpha / k` each, and so do m sets of weight files of one suspect: the selection of bases
depends on the suspect and the bases, and on no codeword. So the bound on the probability that *any* innocent scores so
high in the *whole* trace is the decoder's times `l (l + 1) k m`. The decoder pays for every reading of an extraction.
The suspect, the base and its ancestor alone decide which there are.

The proof assumes that the keyed generator is pseudo-random and that the suspect was made without feedback: an attacker
who sees the scores of innocents can optimize a suspect towards one of them. So these scores are left out by default.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from hf_fingerprint.checkpoints import TensorReader
from hf_fingerprint.codes import decode_readings
from hf_fingerprint.extraction import Extraction
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.progress import Progress, part_of
from hf_fingerprint.tracing.result import RecipientScore, TraceResult
from hf_fingerprint.vault import Base, CopyRecord


@dataclass(frozen=True)
class Candidates:
    """Copies of one base to test.

    Attributes:
        base ([`Base`]): the base.
        copies (sequence of [`CopyRecord`]): the copies.
        keys (sequence of `bytes`): their copy keys.
        recipients (`int`, *optional*): how many copies the bound pays for; by default those tested.
        states (mapping of `str` to `str`): each copy's delivery state by its id; see [`delivery_state`].
    """

    base: Base
    copies: Sequence[CopyRecord]
    keys: Sequence[bytes]
    recipients: int | None = None
    states: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Candidates({self.base.base_id}, {len(self.copies)} copies)"

    @property
    def covered(self) -> int:
        """How many copies the bound pays for."""
        return len(self.copies) if self.recipients is None else max(self.recipients, len(self.copies))


@dataclass(frozen=True)
class AccusationLevel:
    """The level at which one look at one suspect accuses: `alpha / share`.

    Attributes:
        alpha (`float`): the bound for the whole trace.
        share (`int`): the divisor of alpha.
        look (`int`): the number of the look, from 1.
    """

    alpha: float
    share: int
    look: int

    @classmethod
    def of(cls, tested: Sequence[Candidates], look: int | None = None, sets: int = 1) -> "AccusationLevel":
        """The level of a look.

        Args:
            tested (sequence of [`Candidates`]): the bases, or records of bases, that share alpha.
            look (`int`, *optional*): the number of the look, from 1, if there may be several.
            sets (`int`, *optional*, defaults to 1): how many sets of weight files share alpha.
        """
        share = len(tested) * sets * (1 if look is None else look * (look + 1))
        return cls(min(candidates.base.alpha for candidates in tested), share, look or 1)


def decide(
    suspect: TensorReader,
    extractions: Sequence[Extraction],
    tested: Sequence[Candidates],
    look: int | None = None,
    progress: Progress | None = None,
    sets: int = 1,
    all_scores: bool = False,
) -> TraceResult:
    """Decodes a suspect's extractions into a verdict on each copy.

    Args:
        suspect ([`TensorReader`]): the open suspect.
        extractions (sequence of [`Extraction`]): one for each base.
        tested (sequence of [`Candidates`]): the bases, or records of bases, with their copies; the likeliest first.
        look, sets: see [`AccusationLevel.of`].
        progress (callable, *optional*): a [`Progress`].
        all_scores (`bool`, *optional*, defaults to `False`): see [`trace`].

    Returns:
        [`TraceResult`]: with the outcome [`Outcome.ACCUSED`], or [`Outcome.NOT_READABLE`] until [`conclude`] decides.
    """
    level = AccusationLevel.of(tested, look, sets)
    step, total = "scoring" if look is None else f"scoring, look {look}", sum(len(each.keys) for each in tested)
    before = accumulate((len(each.keys) for each in tested), initial=0)
    verdicts = [
        _decide_base(suspect, extraction, candidates, level, part_of(progress, step, total, done), all_scores)
        for extraction, candidates, done in zip(extractions, tested, before, strict=False)
    ]
    every = [score for verdict in verdicts for score in verdict.scores]
    scores = tuple(sorted(every, key=lambda score: (score.log10_false_accusation, -score.score)))
    accused = tuple(score for score in scores if score.accused)
    # without an accusation the likeliest base, since the base of the highest score would leak about innocents
    shown = next((verdict for verdict in verdicts if accused and verdict.base == accused[0].base), verdicts[0])
    return replace(
        shown,
        outcome=Outcome.ACCUSED if accused else Outcome.NOT_READABLE,
        scores=scores,
        accused=accused,
        recipients_tested=total,
        recipients_covered=sum(candidates.covered for candidates in tested),
    )


def _decide_base(
    suspect: TensorReader,
    extraction: Extraction,
    tested: Candidates,
    level: AccusationLevel,
    progress: Progress | None,
    all_scores: bool,
) -> TraceResult:
    base = tested.base
    keys, alpha = tested.keys, level.alpha / level.share
    readings = list(extraction.readings.values())
    decoded = decode_readings(base.codebook(), keys, readings, alpha, progress=progress, recipients=tested.covered)
    accused = set(decoded.accused)
    shown = enumerate(tested.copies) if all_scores else ((i, tested.copies[i]) for i in sorted(accused))
    scores = [
        RecipientScore(
            copy.recipient,
            copy.copy_id,
            float(decoded.scores[i]),
            min(0.0, float(decoded.log_bounds[i] / math.log(10)) + math.log10(level.share)),
            i in accused,
            base.base_id,
            tested.states.get(copy.copy_id, ""),
            copy.created,
        )
        for i, copy in shown
    ]
    return TraceResult(
        suspect=suspect.source.name,
        revision=suspect.source.revision,
        base=base.base_id,
        base_source=base.source,
        outcome=Outcome.NOT_READABLE,
        scores=tuple(scores),
        tensors_matched=extraction.tensors_matched,
        tensors_marked=len(base.carriers),
        weights_read=extraction.weights_read,
        weights_dropped=extraction.weights_dropped,
        lineage=extraction.lineage,
        alpha=level.alpha,
        threshold=decoded.threshold,
        rounds=decoded.rounds,
        looks=level.look,
        tensors_aligned=extraction.aligned,
    )
