"""How coalitions ended, over their runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_fingerprint.evaluation.trials import Trial


@dataclass(frozen=True)
class CoalitionOutcome:
    """A coalition of one size by one strategy, formed once or more.

    Attributes:
        attack (`str`): the collusion's name in the suite.
        size (`int`): how many copies were mixed.
        runs (`int`): how often.
        all_main_contributors (`int`): runs in which everybody was caught who gave a twentieth of the weights or more.
        anybody (`int`): runs in which anybody was caught whose copy was in it.
        caught (`int`): those caught, of `runs * size`.
        innocents_accused (`int`): over all runs.
    """

    attack: str
    size: int
    runs: int
    all_main_contributors: int
    anybody: int
    caught: int
    innocents_accused: int


def outcomes(mixed: Iterable[Trial]) -> list[CoalitionOutcome]:
    """The outcomes of coalitions, in the order of their first points."""
    runs: dict[tuple[str, int], list[Trial]] = {}
    for trial in mixed:
        runs.setdefault((trial.attack, trial.colluders), []).append(trial)
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
        )
        for (attack, size), trials in runs.items()
    ]
