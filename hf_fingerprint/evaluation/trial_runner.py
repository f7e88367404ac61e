"""Runs the trials of an evaluation: each suspect is made, measured and traced, or taken from the results on disk."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import hf_fingerprint
from hf_fingerprint.attacks.attack import Attacker, AttackStep, Compose
from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.errors import FingerprintError, StorageError
from hf_fingerprint.evaluation.ancestor_model import AncestorModel
from hf_fingerprint.evaluation.data import EvaluationData
from hf_fingerprint.evaluation.planning import Job
from hf_fingerprint.evaluation.testbed import Testbed
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, SINGLE, ResultStore, Skipped, Trial
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import for_convolutions
from hf_fingerprint.progress import Progress
from hf_fingerprint.sharing import JobLocks, job_key, share_jobs


if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


class _CannotAttackError(FingerprintError):
    """An attack does not work on this model."""


class TrialRunner:
    """Makes suspects, measures their accuracy and traces them.

    Args:
        testbed ([`Testbed`]): the model and its copies.
        data ([`EvaluationData`]): the images.
        store ([`ResultStore`]): the trials that are done already; each further one is added.
        locks ([`JobLocks`]): the locks of the trials.
        public_base (`bool`): whether the attacker has the unmarked base too.
        ancestor ([`AncestorModel`], *optional*): the public model that the attacker has.

    Attributes:
        skipped (`dict[str, str]`): attacks that do not work on this model, and why.
    """

    def __init__(
        self,
        testbed: Testbed,
        data: EvaluationData,
        store: ResultStore,
        locks: JobLocks,
        public_base: bool,
        ancestor: AncestorModel | None = None,
    ):
        self._testbed, self._data, self._ancestor = testbed, data, ancestor
        self._store, self._locks = store, locks
        self._attacker = Attacker(
            testbed.build,
            *data.attacker,
            base=testbed.base_state() if public_base else None,
            ancestor=None if ancestor is None else ancestor.state,
        )
        self._copy_cache: dict[int, State] = {}
        self._first_step_result: tuple[str, State] | None = None
        self.skipped: dict[str, str] = {}

    def trials(self, jobs: Sequence[Job], progress: Progress) -> tuple[Trial, ...]:
        """The trial of each job, shared with the other processes of the launch. A sweep ends once nobody is accused
        and accuracy is at chance."""
        keys = [self._key(job) for job in jobs]
        last_steps: dict[str, int] = {}  # the first job of an attack after which its sweep ends
        begun = False  # trials on the disk take no time, so the time that is left is estimated without them

        def is_wanted(index: int) -> bool:
            return index <= last_steps.get(jobs[index].attack, index)

        def show_progress() -> None:
            done = sum(key in self._store.known or not is_wanted(index) for index, key in enumerate(keys))
            progress("trials", done, len(jobs))

        def do(index: int) -> Trial | Skipped:
            nonlocal begun
            if not begun:
                begun = True
                show_progress()
            try:
                return self._measure(jobs[index], progress)
            except _CannotAttackError as reason:
                return Skipped(str(reason))

        for index in share_jobs(keys, self._store, self._locks, do, is_wanted):
            if begun:
                show_progress()
            if self._ends_sweep(jobs[index], self._store.known[keys[index]]):
                attack = jobs[index].attack
                last_steps[attack] = min(index, last_steps.get(attack, index))
                if begun:
                    show_progress()
        results = [(jobs[i].attack, self._store.known[key]) for i, key in enumerate(keys) if is_wanted(i)]
        self.skipped |= {attack: each.reason for attack, each in results if isinstance(each, Skipped)}
        return tuple(each for _, each in results if isinstance(each, Trial))

    def _ends_sweep(self, job: Job, result: Trial | Skipped) -> bool:
        if isinstance(result, Skipped):
            return True
        return job.kind == SINGLE and not result.accused and result.accuracy <= self._data.chance

    def _key(self, job: Job) -> str:
        testbed = self._testbed
        return job_key(
            version=hf_fingerprint.__version__,
            base=testbed.base.base_id,
            model=testbed.base.content_hash,
            config=asdict(testbed.config),
            data=self._data.digest,
            innocents=testbed.innocents,
            public_base=self._attacker.base is not None,
            attack=job.attack,
            what=job.what,
            colluders=job.colluders,
            **({} if job.members == tuple(range(job.colluders)) else {"members": job.members}),
            **({"ancestor": self._ancestor.content_hash} if self._ancestor else {}),
        )

    def _measure(self, job: Job, progress: Progress) -> Trial:
        began = time.monotonic()
        progress(job.label, 0, None)
        self._attacker = replace(
            self._attacker, progress=lambda step, done, total: progress(f"{job.label}, {step}", done, total)
        )
        state, shares = self._make_suspect(job)
        verdict = self._testbed.trace_suspect(state, job.members)
        predicted = self._predict(state)
        fields = asdict(replace(verdict, layers=tuple(round(score, 2) for score in verdict.layers)))
        del fields["weights_read"], fields["cosine"]
        return Trial(
            kind=job.kind,
            attack=job.attack,
            what=job.what,
            step=job.step,
            strength=job.strength,
            accuracy=float((predicted == self._data.test[1]).double().mean()),
            agreement=float((predicted == self._copy_predictions).double().mean()),
            shares=shares,
            seconds=round(time.monotonic() - began, 2),
            **fields,
        )

    def _make_suspect(self, job: Job) -> "tuple[State, tuple[float, ...]]":
        """A suspect's state dict, and each colluder's share of it."""
        if job.kind == BASE:
            return self._testbed.base_state(), ()
        if job.attack_step is None:
            return self._copy(0), (1.0,)
        steps = job.attack_step.steps if isinstance(job.attack_step, Compose) else (job.attack_step,)
        states = [self._copy(recipient) for recipient in job.members]
        mixed: Any = steps[0]
        try:
            if job.kind == COLLUSION:
                return job.attack_step(states, self._attacker), mixed.contributions(states)
            state = self._after_first_step(steps[0], states[0])
            for step in steps[1:]:
                state = step(state, self._attacker)
            return state, (1.0,)
        except StorageError:
            raise
        except FingerprintError as error:
            raise _CannotAttackError(str(error)) from None
        except Exception as error:  # one failing attack must not stop the others
            if isinstance(error, OSError) and is_disk_full_error(error):
                raise disk_full_error(Path(gettempdir())) from None
            raise _CannotAttackError(f"{type(error).__name__}: the attack does not work on this model.") from error

    def _after_first_step(self, step: AttackStep, state: "State") -> "State":
        """The first copy after an attack's first step, cached for the next attack with the same first step."""
        if self._first_step_result is None or self._first_step_result[0] != repr(step):
            self._first_step_result = (repr(step), step(state, self._attacker))
        return self._first_step_result[1]

    def _copy(self, recipient: int) -> "State":
        """A recipient's copy, cached in memory."""
        if recipient not in self._copy_cache:
            self._copy_cache[recipient] = self._testbed.copy(recipient)
        return self._copy_cache[recipient]

    @cached_property
    def _copy_predictions(self) -> "torch.Tensor":
        return self._predict(self._copy(0))

    def _predict(self, state: "State") -> "torch.Tensor":
        """The predicted classes of the test images, `(n,)`."""
        import torch

        images = self._data.test[0]
        model = self._testbed.model_of(state)
        if model is None:
            raise _CannotAttackError("The attack changes the model's tensors, so accuracy can't be measured.")
        model = model.to(images.device)
        try:
            with torch.inference_mode():
                parts = map(for_convolutions, images.split(self._attacker.batch))
                return torch.cat([logits_of(model(part)).argmax(-1) for part in parts])
        except RuntimeError:
            raise _CannotAttackError("The attack changes the model's widths, so accuracy can't be measured.") from None
