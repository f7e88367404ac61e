"""From readings to a verdict on every copy, with a bound that covers all looks and all records of one base.

An innocent's codeword is independent of the suspect, so what is computed from the suspect alone, `h`, gives the
innocent's score a tail that is bounded whatever h is. Look l has an h of its own: the reading of the first `S_l`
weights of an order that no data decide. It exists whether or not anybody stops before it, so the event "look l accuses
an innocent" has probability at most `alpha / (l (l + 1))`, and

    P(any look accuses an innocent) <= sum over l of alpha / (l (l + 1)) = alpha sum of (1/l - 1/(l + 1)) <= alpha

by the union bound, whatever rule stops the looking, also one that sees the scores. In the same way k records of one
base share alpha, `alpha / k` each. A bound on the probability that *any* innocent scores so high in the *whole* trace
is therefore the decoder's times `l (l + 1) k`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_fingerprint.checkpoints import Weights
from hf_fingerprint.codes import decode
from hf_fingerprint.reading.suspect import Lineage, Reading
from hf_fingerprint.vault import Base, CopyRecord


@dataclass(frozen=True)
class RecipientScore:
    """One copy's score.

    Attributes:
        recipient (`str`): whose copy it is.
        copy_id (`str`): its record in the vault.
        score (`float`): in standard deviations of an innocent's score.
        log10_false_accusation (`float`): decimal logarithm of a bound on the probability that any innocent in the
            vault would score so high in this trace, whatever was done to the suspect.
        accused (`bool`): whether that is at most alpha.
    """

    recipient: str
    copy_id: str
    score: float
    log10_false_accusation: float
    accused: bool


@dataclass(frozen=True)
class TraceResult:
    """What a trace found.

    Attributes:
        suspect (`str`): the suspect's path or Hub id.
        revision (`str` or `None`): its commit, if it came from the Hub.
        base (`str`): the base it was read against; of several records of it, that with the surest score.
        base_source (`str`): where that came from.
        accused (`tuple[RecipientScore, ...]`): those whose bound is at most alpha, surest first; often nobody.
        scores (`tuple[RecipientScore, ...]`): everybody, highest first.
        recipients_tested (`int`): copies in the vault that were tested.
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
    """

    suspect: str
    revision: str | None
    base: str
    base_source: str
    accused: tuple[RecipientScore, ...]
    scores: tuple[RecipientScore, ...]
    recipients_tested: int
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

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: numbers, strings, lists; a threshold that nothing can reach is `None`."""
        found = asdict(self)
        found["threshold"] = self.threshold if math.isfinite(self.threshold) else None
        return found


@dataclass(frozen=True)
class Candidates:
    """Copies of one base that are to be tested.

    Attributes:
        base ([`Base`]): the base.
        copies (sequence of [`CopyRecord`]): the copies.
        keys (sequence of `bytes`): their copy keys.
    """

    base: Base
    copies: Sequence[CopyRecord]
    keys: Sequence[bytes]

    def __repr__(self) -> str:
        return f"Candidates({self.base.base_id}, {len(self.copies)} copies)"


def judge(
    suspect: Weights,
    readings: Sequence[Reading],
    tested: Sequence[Candidates],
    look: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> TraceResult:
    """Turns a suspect's readings into a verdict on each copy.

    Args:
        suspect ([`Weights`]): where the readings are from.
        readings (sequence of [`Reading`]): one for each base.
        tested (sequence of [`Candidates`]): one base, or several records of the same weights, with their copies.
        look (`int`, *optional*): which of several looks at the suspect this is, counted from 1; by default the only
            one.
        advance (callable, *optional*): told the copies scored.
    """
    alpha = min(candidates.base.alpha for candidates in tested)
    share = len(tested) * (1 if look is None else look * (look + 1))
    verdicts = [
        _judge_base(suspect, reading, candidates, alpha, share, advance)
        for reading, candidates in zip(readings, tested, strict=True)
    ]
    scores = tuple(sorted((score for verdict in verdicts for score in verdict.scores), key=_sureness))
    accused = tuple(score for score in scores if score.accused)
    surest = min(verdicts, key=lambda verdict: min(map(_sureness, verdict.scores), default=(1.0, 0.0)))
    return replace(surest, scores=scores, accused=accused, recipients_tested=len(scores), looks=look or 1)


def _sureness(score: RecipientScore) -> tuple[float, float]:
    return score.log10_false_accusation, -score.score


def _judge_base(
    suspect: Weights,
    reading: Reading,
    tested: Candidates,
    alpha: float,
    share: int,
    advance: Callable[[int], None] | None,
) -> TraceResult:
    base = tested.base
    decoded = decode(base.codebook(), tested.keys, reading.values, reading.mass, alpha / share, advance=advance)
    accused = set(decoded.accused)
    scores = [
        RecipientScore(
            copy.recipient,
            copy.copy_id,
            float(decoded.scores[i]),
            min(0.0, float(decoded.log_bounds[i] / math.log(10)) + math.log10(share)),
            i in accused,
        )
        for i, copy in enumerate(tested.copies)
    ]
    return TraceResult(
        suspect=suspect.source.name,
        revision=suspect.source.revision,
        base=base.base_id,
        base_source=base.source,
        accused=(),
        scores=tuple(scores),
        recipients_tested=len(scores),
        tensors_matched=reading.tensors_matched,
        tensors_marked=len(base.carriers),
        weights_read=reading.weights_read,
        weights_dropped=reading.weights_dropped,
        lineage=reading.lineage,
        alpha=alpha,
        threshold=decoded.threshold,
        rounds=decoded.rounds,
        tensors_aligned=reading.aligned,
    )
