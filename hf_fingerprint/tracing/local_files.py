"""Traces a suspect on this machine: files, or a model in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction import Extraction, extract
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.registration.same_weights import find_recorded_copies
from hf_fingerprint.tracing.conclusion import conclude, unread_result
from hf_fingerprint.tracing.find_base import find_bases
from hf_fingerprint.tracing.result import RecordedCopy, TraceResult
from hf_fingerprint.tracing.trace_request import ReadTarget, TraceRequest
from hf_fingerprint.tracing.verdict import AccusationLevel, decide
from hf_fingerprint.vault import CopyRecord, Vault, delivery_states


LARGE_DRIFT = 0.05


def trace_files(request: TraceRequest, suspect: Checkpoint, looks: int = 0, sets: int = 1) -> TraceResult:
    """Traces one set of weight files, or a model in memory.

    Args:
        request ([`TraceRequest`]): the request.
        suspect ([`Checkpoint`]): the open suspect.
        looks (`int`, *optional*, defaults to 0): how many looks were decided before, by ranges.
        sets (`int`, *optional*, defaults to 1): how many sets of weight files the suspect has; they share alpha.
    """
    recorded = _find_recorded(request, suspect)
    with ExitStack() as stack:
        on_record = [copy.base_id for copy in recorded]
        found = find_bases(
            request.vault,
            request.bases,
            request.base_ref,
            suspect,
            stack,
            on_record,
            request.options,
            request.device,
        )
        if not found.groups:
            alpha = min(base.alpha for base in request.bases)
            reason = "No tensor of it fits a marked tensor of any base on record: another model."
            return unread_result(suspect.source, Outcome.NOT_COMPARABLE, reason, alpha, found.not_read)
        targets = request.targets(found)
        tested = [each.candidates for each in targets]
        extractions = _extract_all(request, targets, suspect)
        disguised = [_may_be_rotated(each) for each in extractions]
        look = looks + 1 if looks or any(disguised) else None
        result = decide(suspect, extractions, tested, look, request.progress, sets, request.all_scores)
        if any(disguised) and not result.accused:
            again = _extract_all(request, [r for r, d in zip(targets, disguised, strict=True) if d], suspect, "always")
            fresh = iter(again)
            extractions = [next(fresh) if d else r for r, d in zip(extractions, disguised, strict=True)]
            look = looks + 2
            result = decide(suspect, extractions, tested, look, request.progress, sets, request.all_scores)
        result = conclude(result, suspect, targets, extractions, AccusationLevel.of(tested, look, sets), found)
    return replace(result, on_record=tuple(_to_recorded_copies(request.vault, recorded)))


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
        )
        for number, each in enumerate(targets)
    ]


def _may_be_rotated(extraction: Extraction) -> bool:
    """Whether an aligned suspect drifted so far that the cause may be a small change of basis."""
    return extraction.lineage.descends and extraction.lineage.drift > LARGE_DRIFT and not extraction.aligned


def _find_recorded(request: TraceRequest, suspect: Checkpoint) -> list[CopyRecord]:
    """The copies whose content hash is the suspect's."""
    try:
        opened = suspect.reopen()
    except CheckpointError:
        return []
    with opened:
        return find_recorded_copies(opened, request.bases, request.rows.copies)


def _to_recorded_copies(vault: Vault, copies: Sequence[CopyRecord]) -> list[RecordedCopy]:
    states = delivery_states(vault, copies)
    return [RecordedCopy(c.recipient, c.copy_id, c.base_id, states[c.copy_id], c.created) for c in copies]
