"""Traces a suspect on this machine: files, or a model in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal, NamedTuple

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.renamed import RemainingTensors
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction import Extraction, extract
from hf_fingerprint.extraction.placed import free_slices
from hf_fingerprint.outcomes import Outcome, combine_outcomes
from hf_fingerprint.registration.same_weights import possible_hashes
from hf_fingerprint.tracing.conclusion import conclude, could_detect_copy, may_hold_copy, unread_result
from hf_fingerprint.tracing.find_base import find_bases
from hf_fingerprint.tracing.groups import BaseSelection
from hf_fingerprint.tracing.readability import fitting_carriers
from hf_fingerprint.tracing.result import RecordedCopy, TraceResult
from hf_fingerprint.tracing.trace_request import ReadTarget, TraceRequest
from hf_fingerprint.tracing.unexplained import ALL_EXPLAINED, ClearedWeights, TracedSet, Unexplained
from hf_fingerprint.tracing.verdict import AccusationLevel, decide
from hf_fingerprint.vault import CopyRecord, Vault, delivery_states


LARGE_DRIFT = 0.05
MAX_PASSES = 8


class _Pass(NamedTuple):
    """One reading of a suspect.

    Attributes:
        suspect ([`Checkpoint`]): the tensors that were left to read.
        found ([`BaseSelection`]): the bases it was compared with.
        targets, extractions: see [`conclude`].
        level ([`AccusationLevel`]): the level of its last look.
        result ([`TraceResult`]): the verdict.
        left ([`Checkpoint`] or `None`): the tensors, and parts of tensors, that were compared with no base.
        repeats (`bool`): whether these may hold the model once more.
    """

    suspect: Checkpoint
    found: BaseSelection
    targets: Sequence[ReadTarget]
    extractions: Sequence[Extraction]
    level: AccusationLevel
    result: TraceResult
    left: Checkpoint | None
    repeats: bool

    @property
    def dissimilar(self) -> int:
        """The weights that were compared and are not similar to any base's."""
        return min(int(each.weights_read - each.similar_counts.sum()) for each in self.extractions)

    @property
    def similar(self) -> float:
        """The weights that are similar to the likeliest base's."""
        return max(float(each.similar_counts.sum()) for each in self.extractions)

    def cleared(self, unexplained: Unexplained) -> list[ClearedWeights]:
        """The weights in which a copy would show, if nobody is accused; of each base that has copies."""
        pairs = zip(self.targets, self.extractions, strict=True)
        found = [ClearedWeights.of(r.candidates.base, e, unexplained) for r, e in pairs if r.candidates.copies]
        return [each for each in found if each.similar]

    def may_hold_copy(self) -> bool:
        """Whether a copy would have been found, or may be among the tensors that can't be read."""
        return any(
            may_hold_copy(target, extraction, self.suspect, self.level)
            for target, extraction in zip(self.targets, self.extractions, strict=True)
        )

    def conclude(self, share: float, unexplained: Unexplained = ALL_EXPLAINED) -> TraceResult:
        """The verdict with its outcome; see [`conclude`]."""
        read = self.targets, self.extractions, self.level, self.found
        return conclude(self.result, self.suspect, *read, share=share, unexplained=unexplained)


def trace_files(request: TraceRequest, suspect: Checkpoint, looks: int = 0, sets: int = 1) -> TracedSet:
    """Traces one set of weight files, or a model in memory.

    A file may hold a model more than once, such as the base itself in front of a copy. So the tensors that were not
    compared are read again by themselves, in further looks, as long as they may hold a copy by their shapes.

    Args:
        request ([`TraceRequest`]): the request.
        suspect ([`Checkpoint`]): the open suspect.
        looks (`int`, *optional*, defaults to 0): how many looks were decided before, by ranges.
        sets (`int`, *optional*, defaults to 1): how many sets of weight files the suspect has; they share alpha.
    """
    recorded = _find_recorded(request, suspect)
    on_record = [copy.base_id for copy in recorded]
    with ExitStack() as stack:
        passes: list[_Pass] = []
        left: Checkpoint | None = suspect
        while left is not None and len(passes) < MAX_PASSES:
            found = _select_bases(request, left, stack, on_record)
            if not found.groups:
                break
            step = _read_once(request, left, found, looks, sets)
            passes.append(step)
            left = step.left if step.repeats and not step.result.accused else None
            looks = step.level.look
        if not passes:
            alpha = min(base.alpha for base in request.bases)
            reason = "No tensor of it fits a marked tensor of any base on record: another model."
            unread = unread_result(suspect.source, Outcome.NOT_COMPARABLE, reason, alpha, found.not_read)
            traced = TracedSet(unread, (), Unexplained(suspect))
        else:
            traced = _conclude_passes(passes)
        result = traced.result
        if left is not None and len(passes) == MAX_PASSES:
            reason = f"It may hold a model more than {MAX_PASSES} times: trace each of the models in it by itself."
            result = replace(result, outcome=Outcome.NOT_READABLE, reason=reason)
    return traced._replace(result=replace(result, on_record=tuple(_to_recorded_copies(request.vault, recorded))))


def _conclude_passes(passes: Sequence[_Pass]) -> TracedSet:
    """The result of all passes. Without an accusation, it allows for a copy that is spread over several of them."""
    first, *others = passes
    unexplained = _unexplained(passes)
    if passes[-1].result.accused:
        return TracedSet(passes[-1].conclude(1.0), (), unexplained)
    behind = _unexplained(passes, 1)  # what the first pass compared is in its extractions
    others = [each for each in others if each.may_hold_copy()]
    times = sum(each.similar > 0 for each in (first, *others))
    # of k that a copy is spread over, one has at least a k-th of it, and the first at least what no other has
    kept = 1 - sum(each.similar for each in passes[1:]) / first.similar if first.similar else 1.0
    share = max(1 / max(times, 1), kept)
    results = [first.conclude(share, behind), *(each.conclude(share) for each in others)]
    outcome = combine_outcomes(each.outcome for each in results)
    reason = next(each.reason for each in results if each.outcome is outcome)
    result = replace(results[0], outcome=outcome, reason=reason, looks=passes[-1].result.looks)
    return TracedSet(result, first.cleared(behind), unexplained)


def _unexplained(passes: Sequence[_Pass], begin: int = 0) -> Unexplained:
    """What no pass found similar to a base, of what was compared from one of the passes on.

    Where the last pass found nothing similar, it may have compared the tensors with another base than others did, so
    these count by their shapes.
    """
    last = passes[-1]
    compared, left = (passes, last.left) if last.similar else (passes[:-1], last.suspect)
    return Unexplained(left, sum(each.dissimilar for each in compared[begin:]))


def _read_once(request: TraceRequest, suspect: Checkpoint, found: BaseSelection, looks: int, sets: int) -> _Pass:
    """Reads the tensors that are placed on the carriers of the bases that were found."""
    targets = request.targets(found)
    tested = [each.candidates for each in targets]
    extractions = _extract_all(request, targets, suspect)
    left = _not_compared(suspect, extractions)
    repeats = left is not None and _may_repeat(request, suspect, left, extractions)
    disguised = [_may_be_rotated(each) for each in extractions]
    look = looks + 1 if looks or any(disguised) or repeats else None
    result = decide(suspect, extractions, tested, look, request.progress, sets, request.all_scores)
    if any(disguised) and not result.accused:
        again = _extract_all(request, [r for r, d in zip(targets, disguised, strict=True) if d], suspect, "always")
        fresh = iter(again)
        extractions = [next(fresh) if d else r for r, d in zip(extractions, disguised, strict=True)]
        look = looks + 2
        result = decide(suspect, extractions, tested, look, request.progress, sets, request.all_scores)
    return _Pass(suspect, found, targets, extractions, AccusationLevel.of(tested, look, sets), result, left, repeats)


def _may_repeat(
    request: TraceRequest, suspect: Checkpoint, left: Checkpoint, extractions: Sequence[Extraction]
) -> bool:
    """Whether the tensors that were not compared may hold a copy by their shapes. No codeword decides this.

    Where nothing is similar to the base and all was compared, nothing stands in front of a copy.
    """
    if left.tensors.keys() == suspect.tensors.keys():
        return False
    if not any(each.similar_counts.any() or not each.all_compared for each in extractions):
        return False
    return any(could_detect_copy(base, fitting_carriers(base, left, whole=True)) for base in request.bases)


def _not_compared(suspect: Checkpoint, extractions: Sequence[Extraction]) -> Checkpoint | None:
    """The tensors, and parts of tensors, that were compared with no base, if there are any."""
    held: set[str] = set().union(*(each.held for each in extractions))
    slices = {}
    for name in held & suspect.tensors.keys():
        parts = [part for each in extractions for part in each.bounds.get(name, ())]
        whole = any(name in each.held and name not in each.bounds for each in extractions)
        if parts and not whole and (free := free_slices(suspect.tensors[name].shape, parts)):
            slices[name] = free
    if len(held) >= len(suspect.tensors) and not slices:
        return None
    return RemainingTensors(suspect, held, slices)


def _select_bases(
    request: TraceRequest, suspect: Checkpoint, stack: ExitStack, on_record: Sequence[str]
) -> BaseSelection:
    return find_bases(
        request.vault, request.bases, request.base_ref, suspect, stack, on_record, request.options, request.device
    )


def _extract_all(
    request: TraceRequest, targets: Sequence[ReadTarget], suspect: Checkpoint, aligned: bool | Literal["always"] = True
) -> list[Extraction]:
    return [
        extract(
            each.candidates.base,
            each.original,
            suspect,
            None if number else request.progress,
            aligned,
            request.device,
            each.ancestor.opened,
        )
        for number, each in enumerate(targets)
    ]


def _may_be_rotated(extraction: Extraction) -> bool:
    """Whether an aligned suspect drifted so far that the cause may be a small change of basis."""
    return extraction.lineage.descends and extraction.lineage.drift > LARGE_DRIFT and not extraction.aligned


def _find_recorded(request: TraceRequest, suspect: Checkpoint) -> list[CopyRecord]:
    """The copies whose content hash is the suspect's."""
    if not request.rows.copies:
        return []
    try:
        opened = suspect.reopen()
    except CheckpointError:
        return []
    with opened:
        hashes = possible_hashes(opened, request.bases, vault=request.vault)
    known = {base.base_id for base in request.bases}
    return [copy for copy in request.vault.copies_with_hash(hashes) if copy.base_id in known]


def _to_recorded_copies(vault: Vault, copies: Sequence[CopyRecord]) -> list[RecordedCopy]:
    states = delivery_states(vault, copies)
    return [RecordedCopy(c.recipient, c.copy_id, c.base_id, states[c.copy_id], c.created) for c in copies]
