"""Which suspects an evaluation makes: attacks by name or group, in some strengths, by coalitions of some sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.attacks.attack import AttackStep, Compose
from hf_fingerprint.attacks.mixing import Collusion
from hf_fingerprint.attacks.suite import GROUPS, SUITE, sweep
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, COPY, SINGLE


COALITIONS, QUICK_COALITIONS = (3, 5, 10), (3,)


def select_attacks(selection: Sequence[str] | None) -> list[str]:
    """Attacks by their names and their groups' names, in the suite's order; all of them by default.

    Raises:
        [`FingerprintError`]: if there is no such attack or group.
    """
    wanted = set(selection or GROUPS)
    unknown = sorted(wanted - set(SUITE) - set(GROUPS))
    if unknown:
        raise FingerprintError(
            f"There is no attack called {unknown[0]}: choose among {', '.join(SUITE)}; or the groups "
            f"{', '.join(GROUPS)}."
        )
    return [name for name, found in SUITE.items() if wanted & {name, found.group}]


@dataclass(frozen=True)
class Job:
    """A suspect to be made.

    Attributes:
        kind (`str`): as a [`Trial`]'s.
        attack (`str`): the name in the suite, or what else it is.
        step (`int`): its place in the sweep.
        attack_step ([`AttackStep`] or `None`): makes it, if anything is to be made.
        members (`tuple[int, ...]`): the holders whose copies it is made from.
    """

    kind: str
    attack: str
    step: int
    attack_step: AttackStep | None
    members: tuple[int, ...]

    @property
    def colluders(self) -> int:
        """How many copies it is made from."""
        return len(self.members)

    @property
    def what(self) -> str:
        """The attack with all its settings."""
        return self.attack if self.attack_step is None else repr(self.attack_step)


def plan_jobs(
    chosen: Sequence[str], coalitions: Sequence[int] | None = None, quick: bool = False, runs: int = 1
) -> list[Job]:
    """All suspects to be made: the base, a copy, the copy attacked, copies mixed.

    Args:
        chosen (sequence of `str`): names of attacks, from [`select_attacks`].
        coalitions (sequence of `int`, *optional*, defaults to 3, 5 and 10): how many copies are mixed.
        quick (`bool`, *optional*, defaults to `False`): whether three strengths of each attack are enough, none of
            those beyond, and coalitions of 3 without what may follow.
        runs (`int`, *optional*, defaults to 1): how often each coalition is formed: the first holders at first, then
            others at random out of twice as many as the largest needs, mixed by another seed.

    Raises:
        [`FingerprintError`]: if a coalition has fewer than 2 members.
    """
    sizes = sorted(set(coalitions or (QUICK_COALITIONS if quick else COALITIONS)))
    if sizes[0] < 2:
        raise FingerprintError(f"A coalition of {sizes[0]} mixes nothing: choose --coalitions of 2 or more.")
    jobs = [Job(BASE, "the base, unmarked", 0, None, ()), Job(COPY, "a copy as issued", 0, None, (0,))]
    for name in chosen:
        steps = sweep(name)
        if SUITE[name].group != COLLUSION:
            kept = range(len(steps)) if not quick else quick_steps(len(SUITE[name].attacks))
            jobs += [Job(SINGLE, name, i, steps[i], (0,)) for i in kept]
        elif not (quick and isinstance(steps[0], Compose)):
            jobs += [
                Job(COLLUSION, name, i, _with_seed(step, run), _coalition_members(size, 2 * sizes[-1], run))
                for i, step in enumerate(steps)
                for size in sizes
                for run in range(runs)
            ]
    return jobs


def quick_steps(count: int) -> list[int]:
    """The places of three strengths in a sweep of so many: the mildest, one between, the most ruinous."""
    return sorted({0, count // 2, count - 1})


def _coalition_members(size: int, recipient_count: int, run: int) -> tuple[int, ...]:
    """A run's coalition."""
    if not run:
        return tuple(range(size))
    return tuple(np.random.default_rng([size, run]).choice(recipient_count, size, replace=False).tolist())


def _with_seed(step: AttackStep, run: int) -> AttackStep:
    """The same collusion, what is random in it by the run's seed."""
    if isinstance(step, Compose):
        return Compose(_with_seed(step.steps[0], run), *step.steps[1:], varied_step=step.varied_step)
    return replace(step, seed=run) if isinstance(step, Collusion) else step
