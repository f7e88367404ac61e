"""Outcomes of coalitions, summed over their runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_fingerprint.attacks.suite import SUITE
from hf_fingerprint.attacks.suite_entry import ANCESTOR
from hf_fingerprint.evaluation.trials import Trial


@dataclass(frozen=True)
class CoalitionOutcome:
    """The outcome of all runs of one collusion strategy at one size and strength.

    Attributes:
        attack (`str`): the collusion's name in the suite.
        size (`int`): how many copies were mixed.
        runs (`int`): how many runs there were.
        all_main_contributors (`int`): runs in which every main contributor was caught; see
            [`Trial.main_contributors`].
        anybody (`int`): runs in which at least one colluder was caught.
        caught (`int`): colluders caught over all runs, of `runs * size`.
        innocents_accused (`int`): innocents accused over all runs.
        strength (`float` or `None`): that of what was done to the mixture; `None` for the group `"collusion"`.
    """

    attack: str
    size: int
    runs: int
    all_main_contributors: int
    anybody: int
    caught: int
    innocents_accused: int
    strength: float | None = None

    @property
    def label(self) -> str:
        """The collusion's name, with its strength if it has one."""
        return self.attack if self.strength is None else f"{self.attack} {self.strength:g}"


def outcomes(mixed: Iterable[Trial]) -> list[CoalitionOutcome]:
    """The outcomes of coalitions, in the order of their first trials."""
    runs: dict[tuple[str, int, float | None], list[Trial]] = {}
    for trial in mixed:
        entry = SUITE.get(trial.attack)
        strength = trial.strength if entry is not None and entry.group == ANCESTOR else None
        runs.setdefault((trial.attack, trial.colluders, strength), []).append(trial)
    return [
        CoalitionOutcome(
            attack=attack,
            size=size,
            runs=len(trials),
            all_main_contributors=sum(
                all(p.caught[i] for i, gave in enumerate(p.main_contributors) if gave) for p in trials
            ),
            anybody=sum(p.accused for p in trials),
            caught=sum(sum(p.caught) for p in trials),
            innocents_accused=sum(p.innocents_accused for p in trials),
            strength=strength,
        )
        for (attack, size, strength), trials in runs.items()
    ]
