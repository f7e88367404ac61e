"""The jobs of an evaluation: attacks by name or group, at chosen strengths and coalition sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_fingerprint.attacks.ancestor.model_merging import Merge
from hf_fingerprint.attacks.attack import AttackStep, Compose
from hf_fingerprint.attacks.finetuning import FineTuning, TransferLearning
from hf_fingerprint.attacks.mixing import Collusion
from hf_fingerprint.attacks.suite import GROUPS, SUITE, attack_sweep
from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, COPY, SINGLE


COALITIONS, QUICK_COALITIONS = (3, 5, 10), (3,)
QUICK_STEPS = 20  # of fine-tuning


def select_attacks(selection: Sequence[str] | None) -> list[str]:
    """The names of selected attacks and groups and of their controls, in the suite's order; `None` means all.

    Raises:
        [`FingerprintError`]: if there is no such attack or group.
    """
    wanted = set(selection or GROUPS)
    unknown = sorted(wanted - set(SUITE) - set(GROUPS))
    if unknown:
        remedy = f"choose among {', '.join(SUITE)}; or the groups {', '.join(GROUPS)}"
        raise FingerprintError(
            f"There is no attack called {unknown[0]}{did_you_mean(unknown[0], [*SUITE, *GROUPS], remedy)}"
        )
    chosen = {name for name, found in SUITE.items() if wanted & {name, found.group}}
    chosen |= {control for name in chosen if (control := SUITE[name].control) is not None}
    return [name for name in SUITE if name in chosen]


@dataclass(frozen=True)
class Job:
    """A suspect to make.

    Attributes:
        kind (`str`): see [`Trial`].
        attack (`str`): the attack's name in the suite, or a description of the base or copy.
        step (`int`): the index in the sweep.
        attack_step ([`AttackStep`] or `None`): the attack; `None` for the base and the copy as issued.
        members (`tuple[int, ...]`): indices of the recipients whose copies are used.
    """

    kind: str
    attack: str
    step: int
    attack_step: AttackStep | None
    members: tuple[int, ...]

    @property
    def colluders(self) -> int:
        """The number of copies used."""
        return len(self.members)

    @property
    def what(self) -> str:
        """The attack with all its parameters."""
        return self.attack if self.attack_step is None else repr(self.attack_step)

    @property
    def label(self) -> str:
        """The attack and its strength, for the progress."""
        if self.attack_step is None:
            return self.attack
        return (
            f"{self.attack} of {self.colluders}" if self.kind == COLLUSION else f"{self.attack} at {self.strength:g}"
        )

    @property
    def strength(self) -> float:
        """The attack's strength. That of a [`Collusion`], and of a suspect without an attack, is its number of
        copies."""
        step = self.attack_step
        deciding = step.steps[step.varied_step] if isinstance(step, Compose) else step
        if step is None or isinstance(deciding, Collusion):
            return float(self.colluders)
        return step.strength


def plan_jobs(
    chosen: Sequence[str],
    coalitions: Sequence[int] | None = None,
    quick: bool = False,
    runs: int = 1,
    fine_tuning_steps: int | None = None,
) -> list[Job]:
    """The jobs of an evaluation: the base, a copy as issued, attacks on that copy, collusions.

    Args:
        chosen (sequence of `str`): names of attacks, from [`select_attacks`].
        coalitions (sequence of `int`, *optional*, defaults to 3, 5 and 10): coalition sizes.
        quick (`bool`, *optional*, defaults to `False`): three strengths, coalitions of 3, and 20 steps of
            fine-tuning, without the attacks that are not [`SuiteEntry.in_quick`].
        runs (`int`, *optional*, defaults to 1): runs of each coalition. The first run takes the first recipients; the
            others draw from twice the largest size and use another seed.
        fine_tuning_steps (`int`, *optional*): steps of fine-tuning. Defaults to those of the suite, or 20 if `quick`.

    Raises:
        [`FingerprintError`]: if a coalition has fewer than 2 members, or there is no step.
    """
    sizes = sorted(set(coalitions or (QUICK_COALITIONS if quick else COALITIONS)))
    if sizes[0] < 2:
        raise FingerprintError(f"A coalition needs 2 copies or more, got {sizes[0]}: choose other --coalitions.")
    if fine_tuning_steps is not None and fine_tuning_steps < 1:
        raise FingerprintError(f"Fine-tuning takes 1 step or more, not {fine_tuning_steps}: choose another number.")
    if fine_tuning_steps is None and quick:
        fine_tuning_steps = QUICK_STEPS
    jobs = [Job(BASE, "the base, unmarked", 0, None, ()), Job(COPY, "a copy as issued", 0, None, (0,))]
    for name in chosen:
        steps, entry = attack_sweep(name), SUITE[name]
        if quick and not entry.in_quick:
            continue
        kept = range(len(steps)) if not quick else quick_steps(len(entry.attacks))
        if fine_tuning_steps is not None:
            steps = [_fine_tune_for(fine_tuning_steps, step) for step in steps]
        if not entry.takes_copies:
            jobs += [Job(SINGLE, name, i, steps[i], (0,)) for i in kept]
            continue
        jobs += [
            Job(COLLUSION, name, i, _with_seed(steps[i], run), _coalition_members(size, 2 * sizes[-1], run))
            for i in kept
            for size in sizes
            for run in range(runs)
        ]
    return jobs


def quick_steps(count: int) -> list[int]:
    """The indices of three strengths in a sweep of `count`: the mildest, a middle one, the strongest."""
    return sorted({0, count // 2, count - 1})


def _fine_tune_for(count: int, step: AttackStep) -> AttackStep:
    """The same attack with so many steps of fine-tuning."""
    if isinstance(step, Compose):
        return Compose(*(_fine_tune_for(count, each) for each in step.steps), varied_step=step.varied_step)
    return replace(step, steps=count) if isinstance(step, FineTuning | TransferLearning) else step


def _coalition_members(size: int, recipient_count: int, run: int) -> tuple[int, ...]:
    """The members of one run's coalition."""
    if not run:
        return tuple(range(size))
    return tuple(np.random.default_rng([size, run]).choice(recipient_count, size, replace=False).tolist())


def _with_seed(step: AttackStep, run: int) -> AttackStep:
    """The same collusion or merge with the run as its seed."""
    if isinstance(step, Compose):
        return Compose(_with_seed(step.steps[0], run), *step.steps[1:], varied_step=step.varied_step)
    return replace(step, seed=run) if isinstance(step, Collusion | Merge) else step
