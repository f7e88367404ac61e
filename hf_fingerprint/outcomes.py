"""What a look at a suspect can end in: "nobody" only where enough was read to have found a verbatim copy."""

from collections.abc import Iterable
from enum import StrEnum


class Outcome(StrEnum):
    """How a trace, a query or a look at key images ended."""

    ACCUSED = "accused"
    """Somebody is accused, with a bound."""
    NOBODY = "nobody"
    """Nobody is accused, and so much was read that a verbatim copy would have been found."""
    NOT_COMPARABLE = "not comparable"
    """The suspect is another model: nothing of it is like anything on record."""
    NOT_READABLE = "not readable"
    """Too little could be read to have found a verbatim copy; the reason and the way out are told with it."""

    @property
    def exit_code(self) -> int:
        """Of a command that ends so: 0 accused, 1 nobody or not comparable, 3 not readable (2 is an error)."""
        return {Outcome.ACCUSED: 0, Outcome.NOT_READABLE: 3}.get(self, 1)


def combine_outcomes(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of several looks together: accused if any is, else not readable if any is, else nobody if any is.

    Args:
        outcomes (iterable of [`Outcome`]): at least one.
    """
    order = (Outcome.ACCUSED, Outcome.NOT_READABLE, Outcome.NOBODY, Outcome.NOT_COMPARABLE)
    return min(outcomes, key=order.index)
