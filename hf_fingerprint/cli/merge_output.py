"""Output of `vault merge`, `pull` and `push`."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from hf_fingerprint.cli import output


if TYPE_CHECKING:
    from hf_fingerprint.vault import MergeReport

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
        _print_lines((f"new: {arrival.describe()}" for arrival in report.arrived), len(report.arrived), "records")
        refused = (f"refused: {fault.describe()}" for fault in report.refused)
        _print_lines(refused, len(report.refused), "rows refused", echo_err=True)
        unusable = (f"not usable here: {fault.describe()}" for fault in report.unusable)
        _print_lines(unusable, len(report.unusable), "rows here not usable", echo_err=True)
        if report.unusable:
            output.echo_err("These rows are unchanged and not shared: restore a backup of this vault.")
    return 0 if report.complete else 1


def _print_lines(lines: Iterable[str], count: int, what: str, echo_err: bool = False) -> None:
    echo = output.echo_err if echo_err else output.echo
    for line in islice(lines, MAX_LISTED):
        echo(line)
    if count > MAX_LISTED:
        echo(f"and {count - MAX_LISTED:,} more {what}")
