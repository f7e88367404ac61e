"""Output of `vault merge`, `pull` and `push`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hf_fingerprint.cli import output


if TYPE_CHECKING:
    from hf_fingerprint.vault import MergeReport
    from hf_fingerprint.vault.faults import Fault
    from hf_fingerprint.vault.merging import Arrival

MAX_LISTED = 20


def print_merge(done: str, report: "MergeReport", as_json: bool = False) -> int:
    """Prints a merge, as text or JSON.

    Args:
        done (`str`): how the first line starts, such as `"from org/keys"`.
        report ([`MergeReport`]): the result of the merge.
        as_json (`bool`, *optional*, defaults to `False`): whether to print JSON.

    Returns:
        `int`: the exit code: 1 if a row of either vault can't be used, else 0.
    """
    if as_json:
        output.print_json(report.to_dict())
    else:
        output.echo(f"{done}: {report.describe()}")
        _print_rows("new", report.arrived, "records", output.echo)
        _print_rows("refused", report.refused, "rows refused", output.echo_err)
        _print_rows("not usable here", report.unusable, "rows here not usable", output.echo_err)
        if report.unusable:
            output.echo_err("These rows are unchanged and not shared: restore a backup of this vault.")
    return 0 if report.complete else 1


def _print_rows(kind: str, rows: "Sequence[Arrival | Fault]", what: str, echo: Callable[[str], None]) -> None:
    for row in rows[:MAX_LISTED]:
        echo(f"{kind}: {row.describe()}")
    if len(rows) > MAX_LISTED:
        echo(f"and {len(rows) - MAX_LISTED:,} more {what}")
