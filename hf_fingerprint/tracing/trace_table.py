"""What a trace shows: what was read, the scores, and the verdict."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tables import Block, Table, format_probability


if TYPE_CHECKING:
    from hf_fingerprint.tracing.result import RecipientScore, TraceResult

MAX_ROWS = 20  # of scores; the accused are always shown
_MAX_NOT_READ = 5


def trace_blocks(result: "TraceResult") -> Iterator[Block]:
    """The lines and the table that show a trace."""
    yield from _suspect_lines(result)
    if result.scores:
        yield _table(result)
    shown = max(MAX_ROWS, len(result.accused))
    if len(result.scores) > shown:
        yield f"and {len(result.scores) - shown:,} more, none accused"
    for found in result.on_record:
        yield (
            f"its content hash is that of copy {found.copy_id}, made for {found.recipient} from base {found.base} on "
            f"{found.created}. The record is not a proof; a score is"
        )
    for row in result.rows_not_used[:_MAX_NOT_READ]:
        yield f"not used: {row.describe()}"
    if len(result.rows_not_used) > _MAX_NOT_READ:
        yield f"and {len(result.rows_not_used) - _MAX_NOT_READ} more rows of the vault; list them with `vault check`"
    yield _verdict(result)
    if result.reason is not None:
        yield result.reason
    if result.bytes_total:
        rest = ""
        if not result.complete:
            rest = "; --full looks for further colluders" if result.accused else "; a larger --max-mb may show more"
        yield (
            f"{result.bytes_fetched / 1e6:,.1f} of {result.bytes_total / 1e6:,.1f} MB fetched in {result.requests:,} "
            f"requests, tested in {result.looks} look{'s' * (result.looks > 1)}{rest}"
        )


def _suspect_lines(result: "TraceResult") -> Iterator[str]:
    """Which files and bases were read."""
    at = f"@{result.revision}" if result.revision else ""
    against = "no base" if result.base is None else f"base {result.base} ({result.base_source})"
    yield f"{result.suspect}{at} against {against}"
    if len(result.files) > 1 or result.files_not_read:
        yield f"weight files read: {', '.join(result.files) or 'none'}"
    for each in result.containers:
        if each.format not in ("safetensors", "memory"):
            by = f", written by {each.producer}" if each.producer else ""
            yield f"read as {each.format}{by}: {each.tensors} tensors in {', '.join(each.dtypes) or 'no type'}"
    for file in result.files_not_read[:_MAX_NOT_READ]:
        yield f"not read: {file.name} ({file.reason})"
    if len(result.files_not_read) > _MAX_NOT_READ:
        yield f"and {len(result.files_not_read) - _MAX_NOT_READ} more weight files not read"
    if result.base is not None:
        lineage = result.lineage
        descent = "descends from the base" if lineage.descends else "does not look like a descendant of the base"
        left = f", {result.tensors_left_out} unreadable tensors left out" if result.tensors_left_out else ""
        yield (
            f"{result.tensors_matched} of {result.tensors_marked} marked tensors matched, {result.weights_read:,} "
            f"weights read, {result.weights_dropped:,} dropped{left}; the suspect {descent} (cosine "
            f"{lineage.cosine:.3f}, drift {lineage.drift:.1%})"
        )
    if result.tensors_aligned:
        yield f"channels of {result.tensors_aligned} tensors were aligned to the base's order and scale"
    if len(result.bases_read) > 1:
        for read in result.bases_read:
            yield f"compared with base {read.base} ({read.source}), {read.copies:,} copies: {read.reason}"
    for read in result.bases_read:
        if read.ancestor is not None and read.ancestor_problem is None:
            yield f"compared with the ancestor of base {read.base} too, {read.ancestor}"
        elif read.ancestor is not None:
            yield (
                f"the ancestor of base {read.base}, {read.ancestor}, was not used: {read.ancestor_problem} A verbatim "
                f"copy is found without it; one that was pulled towards the ancestor may not be"
            )
    for base in result.bases_not_read[:_MAX_NOT_READ] if result.base is not None else ():
        yield f"not compared with base {base.name} ({base.source}): {base.reason}"
    if result.base is not None and len(result.bases_not_read) > _MAX_NOT_READ:
        yield f"and {len(result.bases_not_read) - _MAX_NOT_READ} more bases not compared; --json lists them"


def _table(result: "TraceResult") -> Table:
    several = len({score.base for score in result.scores}) > 1 or len(result.bases_read) > 1
    heads = ["made for", "copy", *["base"] * several, "state", "score", "bound on a false accusation", "verdict"]
    rows = []
    for score in result.scores[: max(MAX_ROWS, len(result.accused))]:
        row = [score.recipient, score.copy_id, *[score.base] * several, score.state, f"{score.score:.1f}"]
        row += [format_probability(score.log10_false_accusation), "ACCUSED" if score.accused else "-"]
        rows.append(tuple(row))
    return Table(tuple(heads), tuple(rows))


def _verdict(result: "TraceResult") -> str:
    names, claim = ", ".join(dict.fromkeys(map(_made_for, result.accused))), result.claim
    if result.accused:
        conclusion = f"accused: {names}" if claim is None else f"confirmed: {names}"
    elif result.outcome is Outcome.NOBODY:
        conclusion = "nobody is accused" if claim is None else f"not confirmed: a copy made for {claim}"
    else:
        conclusion = f"{result.outcome.value}: nobody is accused, and nobody is cleared"
    covered = "" if claim is None else f", and the bound covers all {result.recipients_covered:,} in the vault"
    bound = f"the probability that any innocent is accused is at most {result.alpha:.0e}"
    condition = "if the suspect was made without knowledge of scores"
    return f"{conclusion}. {result.recipients_tested:,} copies tested{covered}; {bound}, {condition}"


def _made_for(score: "RecipientScore") -> str:
    """Describes a copy, without the claim that its recipient leaked it."""
    never = ", unfinished: a checkpoint of a training" if score.state == "begun" else ""
    return f"the copy made for {score.recipient} ({score.copy_id}, {score.state}{never})"
