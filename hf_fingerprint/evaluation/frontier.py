"""What it costs to get under the accusation bound: the least accuracy that each attack gives up for it, and the best
that all attacks together allow."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_fingerprint.evaluation.trials import Trial


@dataclass(frozen=True)
class AttackCost:
    """What an attack has to give up.

    Attributes:
        attack (`str`): its name.
        escape ([`Trial`] or `None`): of its points at which nobody is accused, the most accurate; `None` if somebody
            always is.
        loss (`float` or `None`): the accuracy lost there, against the copy's.
        highest_accuracy (`float`): the highest accuracy of all its points.
        least_score (`float` or `None`): the lowest score of all its points; `None` where that is withheld.
    """

    attack: str
    escape: Trial | None
    loss: float | None
    highest_accuracy: float
    least_score: float | None

    @property
    def lowest_score_text(self) -> str:
        """The lowest score for people."""
        return format_score(self.least_score)

    @property
    def loss_text(self) -> str:
        """The loss for people: in points of a hundred."""
        if self.loss is None:
            return "not lost"
        return f"{100 * self.loss:.1f} points" if self.loss > 0 else "nothing"


def cheapest_escape(attack: str, trials: Sequence[Trial], copy: Trial) -> AttackCost:
    """The cheapest way of an attack under the bound.

    Args:
        attack (`str`): its name.
        trials (sequence of [`Trial`]): its sweep, one point or more.
        copy ([`Trial`]): the copy as issued.
    """
    escape = max((trial for trial in trials if not trial.accused), key=lambda p: p.accuracy, default=None)
    return AttackCost(
        attack=attack,
        escape=escape,
        loss=None if escape is None else copy.accuracy - escape.accuracy,
        highest_accuracy=max(trial.accuracy for trial in trials),
        least_score=min(trials, key=evidence_score).score,
    )


def evidence_score(trial: Trial) -> float:
    """A point's score to compare points by: one that is withheld is below any that accuses."""
    return -math.inf if trial.score is None else trial.score


def format_score(score: float | None) -> str:
    """A score for people."""
    return "below the bound" if score is None else f"{score:.1f}"


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """The Pareto front, as a thief sees it: points to which no other is at least as accurate with less evidence.

    Returns:
        `list` of [`Trial`]: by falling accuracy and falling score.
    """
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda p: (-p.accuracy, evidence_score(p))):
        if not found or evidence_score(trial) < evidence_score(found[-1]):
            found.append(trial)
    return found
