"""What `vault merge`, `pull` and `push` print of a merge."""

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from hf_fingerprint.cli import output


if TYPE_CHECKING:
    from hf_fingerprint.vault import MergeReport

MOST = 20


def print_merge(done: str, report: "MergeReport", as_json: bool = False) -> int:
    """A merge in words, or as JSON.

    Args:
        done (`str`): what was done, such as `"from org/keys"`.
        report ([`MergeReport`]): what it brought.
        as_json (`bool`, *optional*, defaults to `False`): whether to print all of it as JSON instead.

    Returns:
        `int`: the exit code: 0, or 1 if a row of either vault could not be used.
    """
    if as_json:
        output.print_json(report.to_dict())
    else:
        output.say(f"{done}: {report.describe()}")
        _list((f"new: {arrival.describe()}" for arrival in report.arrived), len(report.arrived), "records")
        refused = (f"refused: {fault.describe()}" for fault in report.refused)
        _list(refused, len(report.refused), "rows refused", remark=True)
        unusable = (f"not usable here: {fault.describe()}" for fault in report.unusable)
        _list(unusable, len(report.unusable), "rows here not usable", remark=True)
        if report.unusable:
            output.remark("These rows were left as they are and are not shared: restore a backup of this vault.")
    return 0 if report.complete else 1


def _list(lines: Iterable[str], count: int, what: str, remark: bool = False) -> None:
    say = output.remark if remark else output.say
    for line in islice(lines, MOST):
        say(line)
    if count > MOST:
        say(f"and {count - MOST:,} more {what}")
