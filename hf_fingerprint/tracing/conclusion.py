"""What a trace that accuses nobody may say: nobody, not comparable or not readable, with the reason and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_fingerprint.checkpoints import RangedCheckpoint, Source, Weights
from hf_fingerprint.extraction import Lineage, Reading, in_names_of, match_names
from hf_fingerprint.outcomes import Outcome, joined
from hf_fingerprint.tracing.case import Read
from hf_fingerprint.tracing.groups import Found
from hf_fingerprint.tracing.readability import Hidden, hidden_in, left_out_of, listed, mass_of, turned_in, would_show
from hf_fingerprint.tracing.result import NotRead, TraceResult
from hf_fingerprint.tracing.verdict import Level
from hf_fingerprint.vault import Base


CONVERT = "convert them to float tensors in the base's names and shapes, and trace that"


@dataclass(frozen=True)
class _Said:
    """An outcome and its reason."""

    outcome: Outcome
    reason: str | None = None


def conclude(
    result: TraceResult,
    suspect: Weights,
    reads: Sequence[Read],
    readings: Sequence[Reading],
    level: Level,
    found: Found,
    limit: str | None = None,
) -> TraceResult:
    """A result with its outcome, the bases that were read, and those that were not.

    Args:
        result ([`TraceResult`]): the last look's.
        suspect ([`Weights`]): the open suspect.
        reads (sequence of [`Read`]): the bases it was read against.
        readings (sequence of [`Reading`]): of the last look, one for each.
        level ([`Level`]): of that look.
        found ([`Found`]): which bases were looked at.
        limit (`str`, *optional*): why not all of the suspect was read, and what to do.
    """
    result = replace(
        result,
        bases_read=tuple(each.describe() for each in reads),
        bases_not_read=(*found.not_read, *found.gone),
        tensors_left_out=len(left_out_of(suspect)),
    )
    if result.accused:
        return replace(result, outcome=Outcome.ACCUSED)
    tested = [(read, reading) for read, reading in zip(reads, readings, strict=True) if read.candidates.copies]
    said = [_say(read, reading, suspect, level, limit) for read, reading in tested] or [_without_copies(reads)]
    if found.gone and joined(each.outcome for each in said) is not Outcome.NOT_READABLE:
        said.append(_Said(Outcome.NOT_READABLE, " ".join(dict.fromkeys(each.reason for each in found.gone))))
    outcome = joined(each.outcome for each in said)
    return replace(result, outcome=outcome, reason=next(s.reason for s in said if s.outcome is outcome))


def nothing_read(
    source: Source, outcome: Outcome, reason: str, alpha: float, not_read: Sequence[NotRead]
) -> TraceResult:
    """The result for a suspect that was read against no base.

    Args:
        source ([`Source`]): the suspect.
        outcome ([`Outcome`]): not comparable or not readable.
        reason (`str`): why, and what to do.
        alpha (`float`): the bound, which nothing was spent of.
        not_read (sequence of [`NotRead`]): the bases.
    """
    return TraceResult(
        suspect=source.name,
        revision=source.revision,
        base=None,
        base_source=None,
        outcome=outcome,
        accused=(),
        scores=(),
        recipients_tested=0,
        recipients_covered=0,
        tensors_matched=0,
        tensors_marked=0,
        weights_read=0,
        weights_dropped=0,
        lineage=Lineage(False, 0.0, 0.0),
        alpha=alpha,
        threshold=float("inf"),
        rounds=0,
        reason=reason,
        bases_not_read=tuple(not_read),
    )


def _say(read: Read, reading: Reading, suspect: Weights, level: Level, limit: str | None) -> _Said:
    base, recipients, alpha = read.candidates.base, read.candidates.covered, level.alpha / level.share
    hidden = _hidden(read, reading, suspect)
    if would_show(base, mass_of(base, {each.carrier for each in hidden}), recipients, alpha):
        return _Said(
            Outcome.NOT_READABLE,
            f"{len(hidden)} of {len(base.carriers)} marked tensors of base {base.base_id} may be in what can't be "
            f"read of the suspect: {listed(hidden)}; {CONVERT}.",
        )
    if would_show(base, reading.alike, recipients, alpha):
        return _Said(Outcome.NOBODY)
    whole = mass_of(base, [carrier.name for carrier in base.carriers])
    if not would_show(base, whole, recipients, alpha):
        return _Said(
            Outcome.NOT_READABLE,
            f"Base {base.base_id} holds too few marked weights to prove even a verbatim copy among {recipients:,} at "
            f"alpha {level.alpha:.0e}: nothing can be said of its copies.",
        )
    if limit is not None:
        return _Said(Outcome.NOT_READABLE, limit)
    if reading.weights_dropped > reading.weights_read:
        return _Said(
            Outcome.NOT_READABLE,
            f"{reading.weights_dropped:,} of the {reading.weights_dropped + reading.weights_read:,} weights that may "
            f"hold a mark are exactly 0 or not finite, so the rest says too little: get the model as it is used.",
        )
    if reading.alike.any():
        return _Said(
            Outcome.NOT_READABLE,
            f"Only {int(reading.alike.sum()):,} weights are like those of base {base.base_id}, too few to find even a "
            f"verbatim copy by: get the rest of the model.",
        )
    compared = f"their weights are unlike the base's (cosine {reading.lineage.cosine:.3f})"
    if not reading.weights_read:
        compared = "nothing of it can be compared"
    return _Said(
        Outcome.NOT_COMPARABLE,
        f"Another model than base {base.base_id}: {reading.tensors_matched} of {len(base.carriers)} marked tensors "
        f"have a counterpart, and {compared}.",
    )


def _hidden(read: Read, reading: Reading, suspect: Weights) -> list[Hidden]:
    base = read.candidates.base
    named = in_names_of(base, suspect)
    hidden = hidden_in(base, named, reading.missing, left_out_of(suspect))
    matches = match_names(base, named)
    unlike = {name: matches[name] for name in reading.unlike if name in matches}
    if isinstance(suspect, RangedCheckpoint):
        if reading.lineage.descends:  # parts of a descendant that don't line up: only the whole can be put in order
            hidden += [Hidden(info.name, "unlike where it stands", name) for name, info in unlike.items()]
        return hidden
    return hidden + list(turned_in(base, read.original, named, unlike))


def _without_copies(reads: Sequence[Read]) -> _Said:
    bases = ", ".join(dict.fromkeys(read.candidates.base.base_id for read in reads))
    return _Said(
        Outcome.NOT_READABLE,
        f"No copy of base {bases}, which the suspect is most like, is on record here, so nobody could be tested: "
        f"bring in the vault that has them (`hf-fingerprint vault merge`), or name another --base.",
    )


def could_hold_a_copy(base: Base, carriers: Sequence[str]) -> bool:
    """Whether so many carriers would be enough to find a verbatim copy by, if they are in a suspect."""
    return would_show(base, mass_of(base, carriers), 1, base.alpha)
