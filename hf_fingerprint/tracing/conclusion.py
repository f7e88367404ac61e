"""The outcome of a trace that accuses nobody: nobody, not comparable or not readable, with the reason and a remedy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hf_fingerprint.checkpoints import RangedCheckpoint, Source, TensorReader
from hf_fingerprint.checkpoints.renamed import RemainingTensors
from hf_fingerprint.extraction import Extraction, to_base_names
from hf_fingerprint.extraction.match import match_names
from hf_fingerprint.outcomes import Outcome, combine_outcomes
from hf_fingerprint.tracing.detection import (
    carrier_mass,
    drifted_copy_score,
    would_detect_copy,
    would_show_copy,
    would_surely_detect,
)
from hf_fingerprint.tracing.groups import BaseSelection
from hf_fingerprint.tracing.readability import (
    HiddenTensor,
    few_bits,
    find_hidden,
    find_narrower,
    format_hidden,
    unreadable_tensors,
)
from hf_fingerprint.tracing.result import SkippedSource, TraceResult
from hf_fingerprint.tracing.trace_request import ReadTarget
from hf_fingerprint.tracing.unexplained import ALL_EXPLAINED, ClearedWeights, Unexplained
from hf_fingerprint.tracing.verdict import AccusationLevel
from hf_fingerprint.vault import Base


CONVERT_HINT = "convert them to float tensors in the base's names and shapes, and trace that"


class _Conclusion(NamedTuple):
    reason: str | None
    outcome: Outcome = Outcome.NOT_READABLE


def conclude(
    result: TraceResult,
    suspect: TensorReader,
    targets: Sequence[ReadTarget],
    extractions: Sequence[Extraction],
    level: AccusationLevel,
    found: BaseSelection,
    limit: str | None = None,
    share: float = 1.0,
    unexplained: Unexplained = ALL_EXPLAINED,
) -> TraceResult:
    """Completes a result with its outcome, the bases that were read, and those that were not.

    Args:
        result ([`TraceResult`]): the result of the last look.
        suspect ([`TensorReader`]): the open suspect.
        targets (sequence of [`ReadTarget`]): the bases that were read.
        extractions (sequence of [`Extraction`]): the extractions of the last look, one for each base.
        level ([`AccusationLevel`]): the level of that look.
        found ([`BaseSelection`]): the selection of bases.
        limit (`str`, *optional*): why not all of the suspect was read, and what to do.
        share (`float`, *optional*, defaults to 1): the least share of a copy's weights that were read together, if the
            suspect holds the marked tensors several times.
        unexplained ([`Unexplained`], *optional*): what else the suspect holds.
    """
    result = replace(
        result,
        bases_read=tuple(each.describe() for each in targets),
        bases_not_read=(*found.not_read, *found.unavailable),
        tensors_left_out=len(unreadable_tensors(suspect)),
    )
    if result.accused:
        return replace(result, outcome=Outcome.ACCUSED)
    conclusions = [
        _conclude_base(target, extraction, suspect, level, limit, share, unexplained)
        for target, extraction in zip(targets, extractions, strict=True)
        if target.candidates.copies
    ] or [_conclude_without_copies(targets)]
    if found.unavailable and combine_outcomes(each.outcome for each in conclusions) is not Outcome.NOT_READABLE:
        reasons = dict.fromkeys(each.reason for each in found.unavailable)
        conclusions.append(_Conclusion(" ".join(reasons)))
    outcome = combine_outcomes(each.outcome for each in conclusions)
    return replace(result, outcome=outcome, reason=next(s.reason for s in conclusions if s.outcome is outcome))


def unread_result(
    source: Source, outcome: Outcome, reason: str, alpha: float, not_read: Sequence[SkippedSource]
) -> TraceResult:
    """The result for a suspect that was compared with no base.

    Args:
        source ([`Source`]): the suspect.
        outcome ([`Outcome`]): not comparable or not readable.
        reason (`str`): why, and what to do.
        alpha (`float`): the bound, of which nothing was spent.
        not_read (sequence of [`SkippedSource`]): the bases.
    """
    return TraceResult(
        suspect=source.name,
        revision=source.revision,
        outcome=outcome,
        alpha=alpha,
        reason=reason,
        bases_not_read=tuple(not_read),
    )


def _conclude_base(
    target: ReadTarget,
    extraction: Extraction,
    suspect: TensorReader,
    level: AccusationLevel,
    limit: str | None,
    share: float,
    unexplained: Unexplained,
) -> _Conclusion:
    base, recipients = target.candidates.base, target.candidates.covered
    alpha = level.alpha / (level.share * len(extraction.readings))
    hidden = _find_hidden_tensors(target, extraction, suspect)
    if would_detect_copy(base, carrier_mass(base, {each.carrier for each in hidden}), recipients, alpha):
        return _Conclusion(
            f"{len(hidden)} of {len(base.carriers)} marked tensors of base {base.base_id} may be among the suspect's "
            f"tensors that can't be read: {format_hidden(hidden)}; {CONVERT_HINT}."
        )
    if would_show_copy(base, extraction, recipients, alpha, share):
        doubt = ClearedWeights.of(base, extraction, unexplained).doubt()
        return _Conclusion(doubt, Outcome.NOBODY if doubt is None else Outcome.NOT_READABLE)
    whole = carrier_mass(base, [carrier.name for carrier in base.carriers])
    if not would_surely_detect(base, whole, recipients, alpha):
        return _Conclusion(
            f"Base {base.base_id} has too few marked weights to prove even a verbatim copy among {recipients:,} at "
            f"alpha {level.alpha:.0e}, so its copies can't be traced."
        )
    if limit is not None:
        return _Conclusion(limit)
    if share < 1 and would_show_copy(base, extraction, recipients, alpha):
        return _Conclusion(
            f"It holds the marked tensors of base {base.base_id} several times, and a copy's may be spread over them: "
            f"trace each of the models in it by itself."
        )
    if _is_unseen(extraction) and would_detect_copy(base, extraction.similar_counts, recipients, alpha):
        score = drifted_copy_score(base, extraction, recipients, alpha, share)
        return _Conclusion(_unseen_reason(base, extraction, suspect, score))
    if extraction.weights_dropped > extraction.weights_read:
        weights = extraction.weights_dropped + extraction.weights_read
        return _Conclusion(
            f"{extraction.weights_dropped:,} of the {weights:,} weights that may hold a mark are exactly 0 or not "
            f"finite, and the rest is too little: get the model that is in use."
        )
    if extraction.similar_counts.any():
        return _Conclusion(
            f"Only {int(extraction.similar_counts.sum()):,} weights are similar to those of base {base.base_id}, too "
            f"few to find even a verbatim copy: get the rest of the model."
        )
    similar = f"their weights are not similar to the base's (cosine {extraction.lineage.cosine:.3f})"
    compared = similar if extraction.weights_read else "none of its weights can be compared"
    return _Conclusion(
        f"Another model than base {base.base_id}: {extraction.tensors_matched} of {len(base.carriers)} marked tensors "
        f"have a counterpart, and {compared}.",
        Outcome.NOT_COMPARABLE,
    )


def _is_unseen(extraction: Extraction) -> bool:
    """Whether what was added to the weights hides most of what a copy's would say."""
    masses = [signal.mass.sum() for signal in extraction.expected.values()]
    return bool(extraction.interference or 2 * max(masses, default=0.0) < extraction.similar_counts.sum())


def _unseen_reason(base: Base, extraction: Extraction, suspect: TensorReader, score: float) -> str:
    """Why a copy's mark would not be seen in weights that are similar to the base's."""
    if extraction.interference:
        return (
            "It adds up branches of which too few weights are left to tell a copy's marks apart: get the model before "
            "its branches were fused."
        )
    if rounded := few_bits(suspect):
        return (
            f"Its weights are stored in so few bits ({', '.join(rounded)}) that a copy's mark may be rounded away: "
            f"get the model before it was quantized."
        )
    return (
        f"Its weights have moved so far from those of base {base.base_id} (by {extraction.lineage.drift:.0%} of their "
        f"norm) that a copy's mark may not show: a verbatim copy that moved as far would score about {score:.1f}, too "
        f"little to count on an accusation. Get the model before it was changed."
    )


def _find_hidden_tensors(target: ReadTarget, extraction: Extraction, suspect: TensorReader) -> list[HiddenTensor]:
    base = target.candidates.base
    named = to_base_names(base, suspect)
    left_out, compared = unreadable_tensors(suspect), extraction.all_compared
    hidden = find_hidden(base, named, extraction.missing, left_out, extraction.placed, compared)
    known = {each.carrier for each in hidden}
    narrower = find_narrower(base, named, {*extraction.missing, *extraction.dissimilar} - known)
    # slices next to the base's may lack the layers from which the search for channels starts
    cut = suspect.cut if isinstance(suspect, RemainingTensors) else ()
    hidden += [each for each in narrower if not compared or each.name in cut]
    if isinstance(suspect, RangedCheckpoint) and extraction.lineage.descends:
        # alignment needs the whole suspect, so parts of a descendant may be permuted
        matches = match_names(base, named)
        dissimilar = {name: matches[name] for name in extraction.dissimilar if name in matches}
        hidden += [HiddenTensor(info.name, "not similar in its order", name) for name, info in dissimilar.items()]
    return hidden


def _conclude_without_copies(targets: Sequence[ReadTarget]) -> _Conclusion:
    bases = ", ".join(dict.fromkeys(target.candidates.base.base_id for target in targets))
    return _Conclusion(
        f"The vault has no copy of base {bases}, which is the most similar to the suspect, so nobody could be tested: "
        f"merge the vault that has them (`hf-fingerprint vault merge`), or name another --base."
    )


def may_hold_copy(target: ReadTarget, extraction: Extraction, suspect: TensorReader, level: AccusationLevel) -> bool:
    """Whether a verbatim copy would have been accused, or may be among the tensors that can't be read."""
    base, recipients = target.candidates.base, target.candidates.covered
    alpha = level.alpha / (level.share * len(extraction.readings))
    hidden = {each.carrier for each in _find_hidden_tensors(target, extraction, suspect)}
    masses = extraction.similar_counts, carrier_mass(base, hidden)
    return any(would_detect_copy(base, mass, recipients, alpha) for mass in masses)


def could_detect_copy(base: Base, carriers: Sequence[str]) -> bool:
    """Whether these carriers would be enough to find a verbatim copy, if they are in a suspect."""
    return would_detect_copy(base, carrier_mass(base, carriers), 1, base.alpha)
