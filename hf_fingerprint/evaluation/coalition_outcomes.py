"""How coalitions ended, over their runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from hf_fingerprint.evaluation.trials import Point


@dataclass(frozen=True)
class Outcome:
    """A coalition of one size by one strategy, formed once or more.

    Attributes:
        attack (`str`): the collusion's name in the suite.
        size (`int`): how many copies were mixed.
        runs (`int`): how often.
        all_main_givers (`int`): runs in which everybody was caught who gave a twentieth of the weights or more.
        somebody (`int`): runs in which anybody was caught whose copy was in it.
        caught (`int`): those caught, of `runs * size`.
        innocents_accused (`int`): over all runs.
    """

    attack: str
    size: int
    runs: int
    all_main_givers: int
    somebody: int
    caught: int
    innocents_accused: int


def outcomes(mixed: Iterable[Point]) -> list[Outcome]:
    """The outcomes of coalitions, in the order of their first points."""
    runs: dict[tuple[str, int], list[Point]] = {}
    for point in mixed:
        runs.setdefault((point.attack, point.colluders), []).append(point)
    return [
        Outcome(
            attack=attack,
            size=size,
            runs=len(points),
            all_main_givers=sum(all(p.caught[i] for i, gave in enumerate(p.main_givers) if gave) for p in points),
            somebody=sum(p.accused for p in points),
            caught=sum(sum(p.caught) for p in points),
            innocents_accused=sum(p.innocents_accused for p in points),
        )
        for (attack, size), points in runs.items()
    ]
