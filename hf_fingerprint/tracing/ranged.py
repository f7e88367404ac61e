"""Traces a suspect on the Hub by byte ranges, look by look, up to the first look that accuses anybody."""

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace

from hf_fingerprint.checkpoints import RangedCheckpoint
from hf_fingerprint.checkpoints.formats.contained import describe_container
from hf_fingerprint.checkpoints.formats.recognition import SAFETENSORS
from hf_fingerprint.checkpoints.formats.safetensors_files import EMPTY
from hf_fingerprint.checkpoints.limits import megabytes
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.extraction import Looks
from hf_fingerprint.extraction.match import has_unambiguous_names
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing.base_mixture import CLEAR_COSINE
from hf_fingerprint.tracing.conclusion import conclude, could_detect_copy, unread_result
from hf_fingerprint.tracing.find_base import find_bases
from hf_fingerprint.tracing.readability import fitting_carriers
from hf_fingerprint.tracing.result import SkippedSource, TraceResult
from hf_fingerprint.tracing.trace_request import TraceRequest
from hf_fingerprint.tracing.verdict import AccusationLevel, decide
from hf_fingerprint.vault import Base


_SCALED = frozenset({"F8_E4M3", "F8_E5M2"})  # weights of so few bits have scales next to them, which are read with all


def trace_ranges(request: TraceRequest, suspect: RangedCheckpoint) -> tuple[TraceResult | None, int]:
    """Traces a suspect by ranges.

    Returns:
        `(result, looks)`: the result, or `None` if all of it must and may be downloaded; and the looks decided.
    """
    bases = request.bases
    scaled = any(info.dtype in _SCALED for info in suspect.tensors.values())
    if scaled or not any(has_unambiguous_names(base, suspect) for base in bases):
        return _result_from_headers(suspect, bases), 0
    with ExitStack() as stack:
        found = find_bases(
            request.vault, bases, request.base_ref, suspect, stack, options=request.options, device=request.device
        )
        if not found.groups or not has_unambiguous_names(found.groups[0].records[0], suspect):
            return _result_from_headers(suspect, bases), 0
        targets = request.targets(found)
        tested = [each.candidates for each in targets]
        compared = [(each.candidates.base, each.original) for each in targets]
        looks = Looks(compared, suspect, [each.ancestor.opened for each in targets])
        for look, extractions in enumerate(looks.extractions(request.progress), 1):
            result = decide(suspect, extractions, tested, look, request.progress, all_scores=request.all_scores)
            if result.accused:
                break
            if result.weights_read and not result.lineage.descends and _may_download_all(suspect):
                return None, look  # another model, or a copy whose tensors have swapped names
        doubtful = result.lineage.cosine < CLEAR_COSINE or bool(suspect.unread_files)
        doubtful |= request.base_ref is None and bool(found.not_read)
        twice = not result.accused and any(_may_hold_twice(base, suspect) for base in bases)
        doubtful |= twice
        doubtful |= any(each.further for each in extractions)  # parts of tensors were whitened, each by itself
        if not result.accused and doubtful and _may_download_all(suspect):
            # channels may be permuted, or the copy is in another file, under other names, or of a base without a share
            # in the first rows
            return None, look
        limit = None if looks.complete else f"Too little was read to find even a verbatim copy: {_limit_hint(suspect)}"
        result = conclude(result, suspect, targets, extractions, AccusationLevel.of(tested, look), found, limit)
        if result.outcome is Outcome.NOT_COMPARABLE and result.weights_read:
            whole = f"To see whether they were permuted, all of it must be read: {_limit_hint(suspect)}"
            reason = f"{result.reason} {whole}"
            result = replace(result, outcome=Outcome.NOT_READABLE, reason=reason)
        elif result.outcome is Outcome.NOBODY and twice:
            reason = f"It may hold the model twice, so all of it must be read: {_limit_hint(suspect)}"
            result = replace(result, outcome=Outcome.NOT_READABLE, reason=reason)
    return _with_transfer_counts(result, suspect, looks.complete), look


def _may_hold_twice(base: Base, suspect: RangedCheckpoint) -> bool:
    """Whether the tensors that have no namesake in the base may hold a copy of it, by their shapes."""
    shapes = {normalize_name(name): record.shape for name, record in base.tensors.items()}
    rest = copy(suspect)
    rest.tensors = {n: i for n, i in suspect.tensors.items() if shapes.get(normalize_name(n)) != i.shape}
    rest.left_out = {name: reason for name, reason in suspect.left_out.items() if reason != EMPTY}
    return could_detect_copy(base, fitting_carriers(base, rest, whole=True))


def _result_from_headers(suspect: RangedCheckpoint, bases: Sequence[Base]) -> TraceResult | None:
    """The result if names don't identify the tensors, or `None` if all of it must and may be downloaded."""
    alpha, seen = min(base.alpha for base in bases), set()
    for base in bases:
        carriers = fitting_carriers(base, suspect, whole=True, equal_only=True)
        layout = base.length, base.family, tuple(carriers)
        if layout not in seen and could_detect_copy(base, carriers):
            break
        seen.add(layout)
    else:
        if suspect.unread_files and _may_download_all(suspect):
            return None
        unlike = "too few of its tensors have a counterpart"
        not_read = [SkippedSource(base.base_id, base.source, unlike) for base in bases]
        reason = "Too few tensors of it fit the marked tensors of any base on record: another model."
        result = unread_result(suspect.source, Outcome.NOT_COMPARABLE, reason, alpha, not_read)
        return _with_transfer_counts(result, suspect, False)
    if _may_download_all(suspect):
        return None
    reason = f"Its tensors can't be identified by name, so all of it must be read: {_limit_hint(suspect)}"
    not_read = [SkippedSource(base.base_id, base.source, "the suspect was not read") for base in bases]
    result = unread_result(suspect.source, Outcome.NOT_READABLE, reason, alpha, not_read)
    return _with_transfer_counts(result, suspect, False)


def _may_download_all(suspect: RangedCheckpoint) -> bool:
    """Whether all weight files may be fetched. Under a limit, a file of unknown size may not."""
    is_known = all(size is not None for _, size in suspect.unread_files)
    limit = suspect.max_bytes
    return limit is None or (is_known and suspect.bytes_fetched + _total_bytes(suspect) <= limit)


def _total_bytes(suspect: RangedCheckpoint) -> int:
    return suspect.total_bytes + sum(size or 0 for _, size in suspect.unread_files)


def _limit_hint(suspect: RangedCheckpoint) -> str:
    needed, allowed = megabytes(_total_bytes(suspect), round_up=True), megabytes(suspect.max_bytes or 0)
    return f"that takes {needed} MB, and --max-mb allows {allowed}; allow more, or give its files."


def _with_transfer_counts(result: TraceResult, suspect: RangedCheckpoint, complete: bool) -> TraceResult:
    files_not_read = [
        SkippedSource(name, suspect.source.name, f"{'' if size is None else f'{megabytes(size)} MB, '}not downloaded")
        for name, size in suspect.unread_files
    ]
    return replace(
        result,
        bytes_fetched=suspect.bytes_fetched,
        bytes_total=suspect.total_bytes,
        requests=suspect.requests,
        complete=complete,
        files=tuple(path.name for path in suspect.source.weights),
        containers=(describe_container(SAFETENSORS, "", suspect.tensors.values(), {}),),
        files_not_read=tuple(files_not_read),
    )
