"""Runs one scheme with trained marks: makes copies, attacks them and decodes the suspects."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from examples._common.training import accuracy
from examples.benchmarks.attacks import LabeledImages
from examples.benchmarks.schemes_report import DEEPMARKS, FAILED, READ, TOOLBOX, UNREADABLE, Row, Rows
from examples.reproduction.arms import ArmVerdict, DesignArm, Term, ToolboxArm
from hf_fingerprint.attacks import Attacker, Compose
from hf_fingerprint.cli.output import echo_err
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.evaluation import EvaluationData, Testbed
from hf_fingerprint.evaluation.planning import Job
from hf_fingerprint.evaluation.trials import BASE, COLLUSION
from hf_fingerprint.progress import Progress
from hf_fingerprint.sharing import job_key
from hf_fingerprint.training import DeepMarksLoss


LR, BATCH = 3e-4, 32
CARRIERS_LR = {DEEPMARKS: 1e-3, TOOLBOX: 1e-2}  # the toolbox moves few weights, and far
ROUNDS = 12
SEED = 0
State = dict[str, torch.Tensor]
Arm = DesignArm | ToolboxArm


@dataclass(frozen=True)
class MarkedCopy:
    """A copy with a trained mark: its weights, training steps, and whether it decodes to its user alone."""

    state: State
    steps: int
    right: bool


def train_mark(arm: Arm, base: torch.nn.Module, user: int, images: LabeledImages, steps: int) -> tuple[State, int]:
    """Fine-tunes the owner's model with a user's mark in the loss.

    Stops after two rounds in a row without a wrong bit, or after 12 rounds.

    Args:
        arm (`DesignArm` or `ToolboxArm`): the scheme.
        base (`torch.nn.Module`): the owner's model.
        user (`int`): the user of the mark.
        images (`tuple`): the owner's images and labels.
        steps (`int`): steps of a round.

    Returns:
        `tuple`: the copy's weights, and the number of steps.
    """
    model = copy.deepcopy(base)
    term = arm.term(model, user)
    carriers = list(carrier_parameters(term).values())
    carrier_ids = {id(weight) for weight in carriers}
    rest = [weight for weight in model.parameters() if id(weight) not in carrier_ids]
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
        right = right + 1 if names_only(arm.decode_suspect(model.eval()), user) else 0
    return model.state_dict(), taken


def names_only(verdict: ArmVerdict, user: int) -> bool:
    """Returns whether each decoder names this user alone; for the toolbox, whether all bits match."""
    decoders = [found for name, found in verdict.named.items() if name != TOOLBOX]
    return all(found == (user,) for found in decoders) if decoders else verdict.wrong == 0


def carrier_parameters(term: Term) -> dict[str, torch.nn.Parameter]:
    """Returns the parameters that an arm's term marks, by name."""
    assert isinstance(term, DeepMarksLoss)
    return term.regularizer.parameters


class SchemeRunner:
    """Makes, attacks and decodes the copies of one scheme.

    Args:
        arm (`DesignArm` or `ToolboxArm`): marks and decodes.
        testbed ([`Testbed`]): builds the model.
        data ([`EvaluationData`]): the attacker's images, and test images.
        owner_images (`tuple`): the owner's images and labels, to train marks in.
        folder (`Path`): the folder for copies.
        steps (`int`): steps of a round of training.
    """

    def __init__(
        self, arm: Arm, testbed: Testbed, data: EvaluationData, owner_images: LabeledImages, folder: Path, steps: int
    ):
        self.arm, self._testbed, self._data, self._owner_images = arm, testbed, data, owner_images
        self._folder, self._steps = folder, steps
        self._attacker = Attacker(testbed.build, *data.attacker, base=testbed.base_state())
        self._copies: dict[int, MarkedCopy] = {}
        self._first_step_result: tuple[str, State] | None = None

    @property
    def carriers(self) -> tuple[str, ...]:
        """The tensors that hold the mark."""
        return tuple(carrier_parameters(self.arm.term(self._testbed.build(), 0)))

    def rows(self, jobs: Sequence[Job], rows: Rows, key_parts: Mapping[str, Any], progress: Progress) -> list[Row]:
        """Returns the row of each job, and stores it. Runs an attack that does not work on this model only once."""
        found: list[Row] = []
        failed: set[str] = set()
        for number, job in enumerate(jobs, 1):
            key = job_key(**key_parts, scheme=self.arm.name, attack=job.attack, what=job.what, colluders=job.colluders)
            if job.attack not in failed:
                found.append(rows.known.get(key) or rows.add(key, self._run_job(job)))
                if found[-1].outcome == FAILED:
                    failed.add(job.attack)
            progress(f"{self.arm.name} attacked", number, len(jobs))
        return found

    def copy(self, user: int) -> MarkedCopy:
        """Returns a user's copy, from disk if it was made before."""
        if user not in self._copies:
            file = self._folder / f"{self.arm.name}-{user}.safetensors"
            if not file.exists():
                echo_err(f"training the mark of user {user} with {self.arm.name}")
                state, steps = train_mark(self.arm, self._testbed.build(), user, self._owner_images, self._steps)
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(".partial")
                save_file(
                    {n: t.detach().clone().contiguous() for n, t in state.items()}, partial, {"steps": f"{steps}"}
                )
                partial.replace(file)
            with safe_open(file, "pt") as opened:
                steps = int(opened.metadata()["steps"])
            state = load_file(file)
            self._copies[user] = MarkedCopy(
                state, steps, names_only(self.arm.decode_suspect(self._load_model(state)), user)
            )
        return self._copies[user]

    def _run_job(self, job: Job) -> Row:
        common: dict[str, Any] = {
            "scheme": self.arm.name,
            "kind": job.kind,
            "attack": job.attack,
            "what": job.what,
            "step": job.step,
            "strength": float(job.colluders)
            if job.kind == COLLUSION or job.attack_step is None
            else job.attack_step.strength,
            "colluders": job.colluders,
        }
        states = [self.copy(user).state for user in job.members]
        try:
            state = self._make_suspect(job, states)
        except FingerprintError as error:
            return Row(**common, outcome=FAILED, reason=str(error))
        except Exception as error:  # as in an evaluation, one failing attack does not stop the others
            return Row(**common, outcome=FAILED, reason=f"{type(error).__name__}: it does not work on this model.")
        try:
            model = self._load_model(state)
            verdict = self.arm.decode_suspect(model)
        except (RuntimeError, FingerprintError):
            return Row(**common, outcome=UNREADABLE, accuracy=self._accuracy(self._testbed.model_of(state)))
        colluders = job.members
        return Row(
            **common,
            outcome=READ,
            accuracy=self._accuracy(model),
            named={name: tuple(user for user in found if user in colluders) for name, found in verdict.named.items()},
            innocents={name: sum(user not in colluders for user in found) for name, found in verdict.named.items()},
            wrong=verdict.wrong,
            bits=verdict.bits,
            score=verdict.score,
        )

    def _make_suspect(self, job: Job, states: list[State]) -> State:
        if job.kind == BASE:
            return self._testbed.base_state()
        if job.attack_step is None:
            return states[0]
        if job.kind == COLLUSION:
            return job.attack_step(states, self._attacker)
        steps = job.attack_step.steps if isinstance(job.attack_step, Compose) else (job.attack_step,)
        if self._first_step_result is None or self._first_step_result[0] != repr(
            steps[0]
        ):  # reused by the next attack with the same first step
            self._first_step_result = (repr(steps[0]), steps[0](states[0], self._attacker))
        state = self._first_step_result[1]
        for step in steps[1:]:
            state = step(state, self._attacker)
        return state

    def _load_model(self, state: State) -> torch.nn.Module:
        """Returns the base's architecture with these weights; raises `RuntimeError` if they don't fit."""
        model = self._testbed.build()
        model.load_state_dict(state)
        return model.eval()

    def _accuracy(self, model: torch.nn.Module | None) -> float | None:
        with suppress(RuntimeError):  # it does not run
            return None if model is None else accuracy(model, *self._data.test)
        return None
