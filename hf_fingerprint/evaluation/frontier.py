"""What it costs to get under the accusation bound: the least accuracy that each attack gives up for it, and the best
that all attacks together allow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_fingerprint.evaluation.trials import Point


@dataclass(frozen=True)
class Cost:
    """What an attack has to give up.

    Attributes:
        attack (`str`): its name.
        escape ([`Point`] or `None`): of its points at which nobody is accused, the most accurate; `None` if somebody
            always is.
        loss (`float` or `None`): the accuracy lost there, against the copy's.
        most_kept (`float`): the highest accuracy of all its points.
        least_score (`float` or `None`): the lowest score of all its points; `None` where that is withheld.
    """

    attack: str
    escape: Point | None
    loss: float | None
    most_kept: float
    least_score: float | None

    @property
    def lowest(self) -> str:
        """The lowest score for people."""
        return score_in_words(self.least_score)

    @property
    def words(self) -> str:
        """The loss for people: in points of a hundred."""
        if self.loss is None:
            return "not lost"
        return f"{100 * self.loss:.1f} points" if self.loss > 0 else "nothing"


def cheapest(attack: str, points: Sequence[Point], copy: Point) -> Cost:
    """The cheapest way of an attack under the bound.

    Args:
        attack (`str`): its name.
        points (sequence of [`Point`]): its sweep, one point or more.
        copy ([`Point`]): the copy as issued.
    """
    escape = max((point for point in points if not point.accused), key=lambda p: p.accuracy, default=None)
    return Cost(
        attack=attack,
        escape=escape,
        loss=None if escape is None else copy.accuracy - escape.accuracy,
        most_kept=max(point.accuracy for point in points),
        least_score=min(points, key=evidence).score,
    )


def evidence(point: Point) -> float:
    """A point's score to compare points by: one that is withheld is below any that accuses."""
    return -math.inf if point.score is None else point.score


def score_in_words(score: float | None) -> str:
    """A score for people."""
    return "below the bound" if score is None else f"{score:.1f}"


def frontier(points: Iterable[Point]) -> list[Point]:
    """The Pareto front, as a thief sees it: points to which no other is at least as accurate with less evidence.

    Returns:
        `list` of [`Point`]: by falling accuracy and falling score.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.accuracy, evidence(p))):
        if not found or evidence(point) < evidence(found[-1]):
            found.append(point)
    return found
