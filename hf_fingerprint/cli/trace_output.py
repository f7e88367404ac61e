"""What `trace` and `verify` print for people."""

from typing import TYPE_CHECKING, Any

from hf_fingerprint.cli.output import console, format_probability, warn_all_scores


if TYPE_CHECKING:
    from hf_fingerprint.tracing import RecipientScore, TraceResult

_MAX_NOT_READ = 5


def print_trace(result: "TraceResult", max_rows: int = 20, claim: str | None = None) -> None:
    """A trace as a table and a verdict in words; of one claim, whether it is confirmed.

    Args:
        result ([`TraceResult`]): what was found.
        max_rows (`int`, *optional*, defaults to 20): how many rows of the table there are, beyond the accused.
        claim (`str`, *optional*): the recipient whom a claim names.
    """
    from rich.text import Text

    screen = console()

    def echo(line: str) -> None:
        screen.print(Text(line))

    _print_suspect(result, echo)
    if result.scores:
        screen.print(_table(result, max_rows))
    shown = max(max_rows, len(result.accused))
    if len(result.scores) > shown:
        echo(f"and {len(result.scores) - shown:,} more, none accused")
    for found in result.on_record:
        echo(
            f"its content hash is on record: copy {found.copy_id}, made for {found.recipient} of base {found.base} on "
            f"{found.created}. A record is no proof; a score is"
        )
    for row in result.rows_not_used[:_MAX_NOT_READ]:
        echo(f"not used: {row.describe()}")
    if len(result.rows_not_used) > _MAX_NOT_READ:
        echo(f"and {len(result.rows_not_used) - _MAX_NOT_READ} more rows of the vault; `vault check` lists them")
    echo(_verdict(result, claim))
    if result.reason is not None:
        echo(result.reason)
    if result.bytes_total:
        rest = ""
        if not result.complete:
            rest = "; --full looks for further colluders" if result.accused else "; a larger --max-mb may tell more"
        echo(
            f"{result.bytes_fetched / 1e6:,.1f} of {result.bytes_total / 1e6:,.1f} MB fetched in {result.requests:,} "
            f"requests and judged in {result.looks} look{'s' * (result.looks > 1)}{rest}"
        )
    if len(result.scores) > len(result.accused):
        warn_all_scores()


def _print_suspect(result: "TraceResult", echo: Any) -> None:
    """What was read, and what was not."""
    at = f"@{result.revision}" if result.revision else ""
    against = "no base" if result.base is None else f"base {result.base} ({result.base_source})"
    echo(f"{result.suspect}{at} against {against}")
    if len(result.files) > 1 or result.files_not_read:
        echo(f"weight files read: {', '.join(result.files) or 'none'}")
    for file in result.files_not_read[:_MAX_NOT_READ]:
        echo(f"not read: {file.name} ({file.reason})")
    if len(result.files_not_read) > _MAX_NOT_READ:
        echo(f"and {len(result.files_not_read) - _MAX_NOT_READ} more weight files not read")
    if result.base is not None:
        lineage = result.lineage
        descent = "descends from the base" if lineage.descends else "does not look like a descendant of the base"
        left = f", {result.tensors_left_out} tensors that can't be read left out" if result.tensors_left_out else ""
        echo(
            f"{result.tensors_matched} of {result.tensors_marked} marked tensors matched, {result.weights_read:,} "
            f"weights read, {result.weights_dropped:,} dropped{left}; the suspect {descent} (cosine "
            f"{lineage.cosine:.3f}, drift {lineage.drift:.1%})"
        )
    if result.tensors_aligned:
        echo(f"channels of {result.tensors_aligned} tensors were put back in the base's order and scale")
    if len(result.bases_read) > 1:
        for read in result.bases_read:
            echo(f"read against base {read.base} ({read.source}), {read.copies:,} copies: {read.reason}")
    for base in result.bases_not_read[:_MAX_NOT_READ] if result.base is not None else ():
        echo(f"not read against base {base.name} ({base.source}): {base.reason}")
    if result.base is not None and len(result.bases_not_read) > _MAX_NOT_READ:
        echo(f"and {len(result.bases_not_read) - _MAX_NOT_READ} more bases not read; --json lists them")


def _table(result: "TraceResult", max_rows: int) -> Any:
    from rich.table import Column, Table
    from rich.text import Text

    several = len({score.base for score in result.scores}) > 1 or len(result.bases_read) > 1
    heads = ["made for", "copy", *["base"] * several, "state", "score", "bound on a false accusation", "verdict"]
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for score in result.scores[: max(max_rows, len(result.accused))]:
        row = [score.recipient, score.copy_id, *[score.base] * several, score.state, f"{score.score:.1f}"]
        row += [format_probability(score.log10_false_accusation), "ACCUSED" if score.accused else "-"]
        table.add_row(*map(Text, row))
    return table


def _verdict(result: "TraceResult", claim: str | None) -> str:
    names = ", ".join(dict.fromkeys(map(_made_for, result.accused)))
    if result.accused:
        conclusion = f"accused: {names}" if claim is None else f"confirmed: {names}"
    elif result.outcome.value == "nobody":
        conclusion = "nobody is accused" if claim is None else f"not confirmed: a copy made for {claim}"
    else:
        conclusion = f"{result.outcome.value}: nobody is accused, and nobody is cleared"
    covered = "" if claim is None else f", and the bound pays for all {result.recipients_covered:,} in the vault"
    return (
        f"{conclusion}. {result.recipients_tested:,} copies tested{covered}; any innocent accused with probability at most "
        f"{result.alpha:.0e}, if the suspect was made without seeing scores of ours"
    )


def _made_for(score: "RecipientScore") -> str:
    """A copy in words, which don't say that the recipient leaked it."""
    never = ", never finished: a training's checkpoint" if score.state == "begun" else ""
    return f"the copy made for {score.recipient} ({score.copy_id}, {score.state}{never})"
