"""A suspect whose files are here, traced."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from hf_fingerprint.checkpoints import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction import Reading, read_suspect
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing.case import Case, Read
from hf_fingerprint.tracing.conclusion import conclude, nothing_read
from hf_fingerprint.tracing.find_base import find_bases
from hf_fingerprint.tracing.result import OnRecord, TraceResult
from hf_fingerprint.tracing.verdict import Level, judge
from hf_fingerprint.vault import CopyRecord, Vault, standings


DRIFTED = 0.05


def trace_files(case: Case, suspect: Checkpoint, looks: int = 0, sets: int = 1) -> TraceResult:
    """Traces one set of weight files.

    Args:
        case ([`Case`]): what is asked.
        suspect ([`Checkpoint`]): the open suspect.
        looks (`int`, *optional*, defaults to 0): looks that were judged before, by ranges.
        sets (`int`, *optional*, defaults to 1): how many sets of weight files the suspect has; they share alpha.
    """
    recorded = _on_record(case, suspect)
    with ExitStack() as held:
        found = find_bases(case.vault, case.bases, case.place, suspect, held, [copy.base_id for copy in recorded])
        if not found.groups:
            alpha = min(base.alpha for base in case.bases)
            reason = "No tensor of it fits a marked tensor of any base on record: another model."
            return nothing_read(suspect.source, Outcome.NOT_COMPARABLE, reason, alpha, found.not_read)
        reads = case.reads(found)
        tested = [each.candidates for each in reads]
        scoring = case.stage("scoring", sum(len(each.keys) for each in tested))
        readings = _readings(case, reads, suspect)
        disguised = [_perhaps_disguised(each) for each in readings]
        look = looks + 1 if looks or any(disguised) else None
        result = judge(suspect, readings, tested, look, scoring, sets, case.all_scores)
        if any(disguised) and not result.accused:
            again = _readings(case, [r for r, d in zip(reads, disguised, strict=True) if d], suspect, "always")
            fresh = iter(again)
            readings = [next(fresh) if d else r for r, d in zip(readings, disguised, strict=True)]
            look = looks + 2
            result = judge(suspect, readings, tested, look, scoring, sets, case.all_scores)
        result = conclude(result, suspect, reads, readings, Level.of(tested, look, sets), found)
    return replace(result, on_record=tuple(_told(case.vault, recorded)))


def _readings(
    case: Case, reads: Sequence[Read], suspect: Checkpoint, aligned: bool | Literal["always"] = True
) -> list[Reading]:
    found = []
    for each in reads:
        base, first = each.candidates.base, each is reads[0]
        reading, aligning = (case.stage(s, base.carrier_weights) if first else None for s in ("reading", "aligning"))
        found.append(read_suspect(base, each.original, suspect, reading, aligned, aligning))
    return found


def _perhaps_disguised(reading: Reading) -> bool:
    """Whether a suspect that lines up drifted so far that a small change of basis could be what moved it."""
    return reading.lineage.descends and reading.lineage.drift > DRIFTED and not reading.aligned


def _on_record(case: Case, suspect: Checkpoint) -> list[CopyRecord]:
    """The copies whose content hash is the suspect's. Only a suspect that is laid out as a base can be one."""
    try:
        whole = open_checkpoint(suspect.source)  # as a base would be, with every tensor
    except CheckpointError:
        return []
    with whole:
        layout = {name: (info.dtype, info.shape) for name, info in whole.tensors.items()}
        if not any(layout == {n: (t.dtype, t.shape) for n, t in base.tensors.items()} for base in case.bases):
            return []
        copies = [copy for copy in case.rows.copies if copy.content_hash is not None]
        found = content_hash(whole.tensors, digest_tensors(whole)) if copies else None
    return [copy for copy in copies if copy.content_hash == found]


def _told(vault: Vault, copies: Sequence[CopyRecord]) -> list[OnRecord]:
    states = standings(vault, copies)
    return [OnRecord(c.recipient, c.copy_id, c.base_id, states[c.copy_id], c.created) for c in copies]
