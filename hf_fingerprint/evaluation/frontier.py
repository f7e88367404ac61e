"""The cost of escaping accusation: the least accuracy that each attack loses, and the Pareto front of all attacks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_fingerprint.evaluation.trials import Trial


@dataclass(frozen=True)
class AttackCost:
    """The accuracy that an attack loses to escape accusation.

    Attributes:
        attack (`str`): its name.
        escape ([`Trial`] or `None`): the most accurate trial in which nobody is accused; `None` if there is none.
        loss (`float` or `None`): the accuracy lost there, relative to the copy as issued.
        highest_accuracy (`float`): the highest accuracy of all its trials.
        least_score (`float` or `None`): the lowest score of all its trials; `None` if withheld.
        control_accuracy (`float` or `None`): the accuracy of the attack's control, if it has one: of what an attacker
            has without any copy's weights.
    """

    attack: str
    escape: Trial | None
    loss: float | None
    highest_accuracy: float
    least_score: float | None
    control_accuracy: float | None = None

    @property
    def no_better_than_control(self) -> bool:
        """Whether the mark is lost only where the suspect is no more accurate than its control."""
        return (
            self.escape is not None
            and self.control_accuracy is not None
            and self.escape.accuracy <= self.control_accuracy
        )

    @property
    def lowest_score_text(self) -> str:
        """The lowest score as text."""
        return format_score(self.least_score)

    @property
    def loss_text(self) -> str:
        """The loss as text, in percentage points."""
        if self.loss is None:
            return "no escape"
        text = f"{100 * self.loss:.1f} points" if self.loss > 0 else "nothing"
        return f"{text}, no better than the control" if self.no_better_than_control else text


def cheapest_escape(attack: str, trials: Sequence[Trial], copy: Trial, control: Trial | None = None) -> AttackCost:
    """The cost of an attack's most accurate escape in a sweep of one trial or more, against the copy as issued, next
    to the attack's control if it has one."""
    escape = max((trial for trial in trials if not trial.accused), key=lambda p: p.accuracy, default=None)
    return AttackCost(
        attack=attack,
        escape=escape,
        loss=None if escape is None else copy.accuracy - escape.accuracy,
        highest_accuracy=max(trial.accuracy for trial in trials),
        least_score=min(trials, key=evidence_score).score,
        control_accuracy=None if control is None else control.accuracy,
    )


def evidence_score(trial: Trial) -> float:
    """A trial's score for comparisons: a withheld score counts as minus infinity."""
    return -math.inf if trial.score is None else trial.score


def format_score(score: float | None) -> str:
    """A score as text."""
    return "below the bound" if score is None else f"{score:.1f}"


def frontier(trials: Iterable[Trial]) -> list[Trial]:
    """The Pareto front of accuracy and evidence, as an attacker sees it.

    Returns:
        `list` of [`Trial`]: by falling accuracy and score. No other trial is as accurate with less evidence.
    """
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda p: (-p.accuracy, evidence_score(p))):
        if not found or evidence_score(trial) < evidence_score(found[-1]):
            found.append(trial)
    return found
