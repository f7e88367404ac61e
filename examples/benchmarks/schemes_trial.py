"""A scheme whose marks are trained in, under attack: its copies, the suspects made of them, what its reader says."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from examples._common.training import accuracy
from examples.benchmarks.attacks import Labelled
from examples.benchmarks.schemes_report import DEEPMARKS, FAILED, READ, TOOLBOX, UNREADABLE, Row, Rows
from examples.reproduction.arms import DesignArm, Term, ToolboxArm, Verdict
from hf_fingerprint.attacks import Then, Thief
from hf_fingerprint.cli.output import remark
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation import Data, Scene
from hf_fingerprint.evaluation.planning import Job
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, key_of
from hf_fingerprint.training import DeepMarksLoss


LR, BATCH = 3e-4, 32
CARRIERS_LR = {DEEPMARKS: 1e-3, TOOLBOX: 1e-2}  # the toolbox has few weights to move, and far
ROUNDS = 12
SEED = 0
Advance = Callable[[str, int, int], None]
State = dict[str, torch.Tensor]
Arm = DesignArm | ToolboxArm


@dataclass(frozen=True)
class Marked:
    """A copy with a mark trained in: its weights, after how many steps, and whether it reads as its user's alone."""

    state: State
    steps: int
    right: bool


def train_in(arm: Arm, base: torch.nn.Module, user: int, images: Labelled, steps: int) -> tuple[State, int]:
    """Fine-tunes the owner's model with a user's mark in the loss, until two rounds in a row end without a wrong bit;
    for 12 rounds at most.

    Args:
        arm (`DesignArm` or `ToolboxArm`): the scheme.
        base (`torch.nn.Module`): the owner's model.
        user (`int`): whose mark.
        images (`tuple`): the owner's, and their labels.
        steps (`int`): of a round.

    Returns:
        `tuple`: the copy's weights, and how many steps were taken.
    """
    model = copy.deepcopy(base)
    term = arm.term(model, user)
    carriers = list(_parameters(term).values())
    apart = {id(weight) for weight in carriers}
    rest = [weight for weight in model.parameters() if id(weight) not in apart]
    groups = [{"params": rest, "lr": LR}, {"params": carriers, "lr": CARRIERS_LR[arm.name]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    taken = right = 0
    while right < 2 and taken < ROUNDS * steps:
        model.train()
        for _ in range(steps):
            pick = torch.randint(len(images[0]), (BATCH,), generator=generator)
            loss = cross_entropy(model(images[0][pick]), images[1][pick]) + term()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        taken += steps
        right = right + 1 if is_users(arm.judge(model.eval()), user) else 0
    return model.state_dict(), taken


def is_users(verdict: Verdict, user: int) -> bool:
    """Whether a copy reads as this user's alone, by each decoder; of the toolbox, which names nobody, bit by bit."""
    decoders = [found for name, found in verdict.named.items() if name != TOOLBOX]
    return all(found == (user,) for found in decoders) if decoders else verdict.wrong == 0


def _parameters(term: Term) -> dict[str, torch.nn.Parameter]:
    """What a term of these arms marks, by name."""
    assert isinstance(term, DeepMarksLoss)
    return term.regulariser.parameters


class Trial:
    """One scheme's copies, attacked and read.

    Args:
        arm (`DesignArm` or `ToolboxArm`): marks and reads.
        scene ([`Scene`]): builds the model.
        data ([`Data`]): what the thief has, and test images.
        owners (`tuple`): the owner's images and labels, to train marks in.
        folder (`Path`): where copies are kept.
        steps (`int`): of a round of training.
    """

    def __init__(self, arm: Arm, scene: Scene, data: Data, owners: Labelled, folder: Path, steps: int):
        self.arm, self._scene, self._data, self._owners = arm, scene, data, owners
        self._folder, self._steps = folder, steps
        self._thief = Thief(scene.build, *data.thief, base=scene.clean())
        self._copies: dict[int, Marked] = {}
        self._first: tuple[str, State] | None = None

    @property
    def carriers(self) -> tuple[str, ...]:
        """The tensors that hold the mark."""
        return tuple(_parameters(self.arm.term(self._scene.build(), 0)))

    def rows(self, jobs: Sequence[Job], rows: Rows, told: Mapping[str, Any], advance: Advance) -> list[Row]:
        """The row of each job, kept; an attack that does not work on this model is tried once."""
        found: list[Row] = []
        failed: set[str] = set()
        for job in jobs:
            key = key_of(**told, scheme=self.arm.name, attack=job.attack, what=job.what, colluders=job.colluders)
            if job.attack not in failed:
                found.append(rows.known.get(key) or rows.add(key, self._row(job)))
                if found[-1].outcome == FAILED:
                    failed.add(job.attack)
            advance(f"{self.arm.name} attacked", 1, len(jobs))
        return found

    def copy(self, user: int) -> Marked:
        """A user's copy, from the disk if it was made before."""
        if user not in self._copies:
            file = self._folder / f"{self.arm.name}-{user}.safetensors"
            if not file.exists():
                remark(f"training the mark of {self.arm.name}'s user {user} in")
                state, steps = train_in(self.arm, self._scene.build(), user, self._owners, self._steps)
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial")
                save_file(
                    {n: t.detach().clone().contiguous() for n, t in state.items()}, partial, {"steps": f"{steps}"}
                )
                partial.replace(file)
            with safe_open(file, "pt") as opened:
                steps = int(opened.metadata()["steps"])
            state = load_file(file)
            self._copies[user] = Marked(state, steps, is_users(self.arm.judge(self._loaded(state)), user))
        return self._copies[user]

    def _row(self, job: Job) -> Row:
        common: dict[str, Any] = {
            "scheme": self.arm.name,
            "kind": job.kind,
            "attack": job.attack,
            "what": job.what,
            "step": job.step,
            "strength": float(job.colluders) if job.kind == COLLUSION or job.how is None else job.how.strength,
            "colluders": job.colluders,
        }
        states = [self.copy(user).state for user in job.members]
        try:
            state = self._made(job, states)
        except FingerprintError as error:
            return Row(**common, outcome=FAILED, reason=str(error))
        except Exception as error:  # as in an evaluation: one attack's mistake does not stop the others
            return Row(**common, outcome=FAILED, reason=f"{type(error).__name__}: it does not work on this model.")
        try:
            model = self._loaded(state)
            verdict = self.arm.judge(model)
        except (RuntimeError, FingerprintError):
            return Row(**common, outcome=UNREADABLE, accuracy=self._accuracy(self._scene.model_of(state)))
        guilty = job.members
        return Row(
            **common,
            outcome=READ,
            accuracy=self._accuracy(model),
            named={name: tuple(user for user in found if user in guilty) for name, found in verdict.named.items()},
            innocents={name: sum(user not in guilty for user in found) for name, found in verdict.named.items()},
            wrong=verdict.wrong,
            bits=verdict.bits,
            score=verdict.score,
        )

    def _made(self, job: Job, states: list[State]) -> State:
        if job.kind == BASE:
            return self._scene.clean()
        if job.how is None:
            return states[0]
        if job.kind == COLLUSION:
            return job.how(states, self._thief)
        steps = job.how.steps if isinstance(job.how, Then) else (job.how,)
        if self._first is None or self._first[0] != repr(steps[0]):  # kept for the next attack that begins alike
            self._first = (repr(steps[0]), steps[0](states[0], self._thief))
        state = self._first[1]
        for step in steps[1:]:
            state = step(state, self._thief)
        return state

    def _loaded(self, state: State) -> torch.nn.Module:
        """The base's architecture with these weights, as these readers take it; anything else is a `RuntimeError`."""
        model = self._scene.build()
        model.load_state_dict(state)
        return model.eval()

    def _accuracy(self, model: torch.nn.Module | None) -> float | None:
        with suppress(RuntimeError):  # it does not run
            return None if model is None else accuracy(model, *self._data.test)
        return None
