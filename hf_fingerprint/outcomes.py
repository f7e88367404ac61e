"""Outcomes of a test of a suspect: "nobody" only if the test would have found a verbatim copy."""

from collections.abc import Iterable
from enum import StrEnum


class Outcome(StrEnum):
    """Outcome of a trace, a query or a key image test."""

    ACCUSED = "accused"
    """At least one recipient is accused, with a bound on false accusation."""
    NOBODY = "nobody"
    """Nobody is accused, and the test would have found a verbatim copy."""
    NOT_COMPARABLE = "not comparable"
    """The suspect is another model: it resembles no base in the vault."""
    NOT_READABLE = "not readable"
    """Too little was read to find even a verbatim copy. The result says why and what to do."""

    @property
    def exit_code(self) -> int:
        """Exit code of a command: 0 accused, 1 nobody or not comparable, 3 not readable (2 is an error)."""
        return {Outcome.ACCUSED: 0, Outcome.NOT_READABLE: 3}.get(self, 1)


def combine_outcomes(outcomes: Iterable[Outcome]) -> Outcome:
    """The joint outcome of several tests: accused if any is, else not readable if any is, else nobody if any is.

    Args:
        outcomes (iterable of [`Outcome`]): at least one outcome.
    """
    order = (Outcome.ACCUSED, Outcome.NOT_READABLE, Outcome.NOBODY, Outcome.NOT_COMPARABLE)
    return min(outcomes, key=order.index)


def joint_exit_code(outcomes: Iterable[Outcome | str | None], accused: bool) -> int:
    """The exit code of a command that traced several suspects.

    Args:
        outcomes (iterable of [`Outcome`], `str` or `None`): how each trace ended; `None` if an error stopped it.
        accused (`bool`): whether an accusation counts; if not, those among the outcomes are expected.

    Returns:
        0 if somebody is accused; else 2 if every trace failed with an error; else 3 if one failed, or a suspect is
        not readable; else 1.
    """
    if accused:
        return 0
    found = list(outcomes)
    failed = [outcome is None for outcome in found]
    if failed and all(failed):
        return 2
    return 3 if any(failed) or Outcome.NOT_READABLE in found else 1
