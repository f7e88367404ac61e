"""Controls: what an attacker has without any copy's weights, next to each attack with the ancestor.

An attack with the ancestor that loses the mark took nothing from the copy if its control, the ancestor's weights
after as many steps of training, is as accurate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_fingerprint.attacks.suite import SUITE
from hf_fingerprint.evaluation.trials import Trial
from hf_fingerprint.tables import Table


CONTROL_HEADINGS = ("attack", "strength", "copies", "accuracy", "control's accuracy", "caught", "mark")
KEPT, LOST, NO_BETTER = "kept", "lost", "lost, no better than the control"


@dataclass(frozen=True)
class ControlledTrial:
    """A suspect made with the ancestor, and its control.

    Attributes:
        trial ([`Trial`]): the suspect.
        control ([`Trial`]): the ancestor's weights after as many steps.
    """

    trial: Trial
    control: Trial

    @property
    def is_better(self) -> bool:
        """Whether the suspect is more accurate than its control."""
        return self.trial.accuracy > self.control.accuracy

    @property
    def outcome(self) -> str:
        """What became of the mark."""
        if self.trial.accused:
            return KEPT
        return LOST if self.is_better else NO_BETTER


def with_controls(trials: Iterable[Trial]) -> list[ControlledTrial]:
    """The suspects whose controls were measured too, in their order."""
    trials = list(trials)
    by_attack = {trial.attack: trial for trial in trials}
    found = []
    for trial in trials:
        entry = SUITE.get(trial.attack)
        control = None if entry is None or entry.control is None else by_attack.get(entry.control)
        if control is not None:
            found.append(ControlledTrial(trial, control))
    return found


def control_of(attack: str, trials: Iterable[Trial]) -> Trial | None:
    """The measured control of an attack of the suite, or `None` if it has none."""
    entry = SUITE.get(attack)
    name = None if entry is None else entry.control
    return next((trial for trial in trials if name is not None and trial.attack == name), None)


def is_control(attack: str) -> bool:
    """Whether this is the control of other attacks of the suite."""
    return any(entry.control == attack for entry in SUITE.values())


def control_table(trials: Iterable[Trial]) -> Table:
    """One row for each suspect with a control."""
    rows = (
        (
            each.trial.attack,
            f"{each.trial.strength:g}",
            str(each.trial.colluders),
            f"{each.trial.accuracy:.1%}",
            f"{each.control.accuracy:.1%}",
            f"{sum(each.trial.caught)} of {each.trial.colluders}",
            each.outcome,
        )
        for each in with_controls(trials)
    )
    return Table(CONTROL_HEADINGS, tuple(rows))
