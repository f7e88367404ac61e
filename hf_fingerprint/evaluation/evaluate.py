"""Attacks run over their sweeps and coalitions mixed, each suspect tried out and judged, one after another.

```python
evaluation = evaluate("org/model", "photos/", "evaluation", attacks=["prune", "collusion"])
write_report(evaluation, Path("evaluation"))
```
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import hf_fingerprint
from hf_fingerprint.attacks.attack import Attacker, AttackStep, Compose, logits
from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.errors import FingerprintError, StorageError
from hf_fingerprint.evaluation.data import IMAGES, EvaluationData, load_data
from hf_fingerprint.evaluation.planning import Job, plan_jobs, select_attacks
from hf_fingerprint.evaluation.testbed import INNOCENTS, Testbed
from hf_fingerprint.evaluation.trials import (
    BASE,
    COLLUSION,
    COPY,
    SINGLE,
    ResultStore,
    Trial,
    open_evaluation_folder,
    trial_key,
)
from hf_fingerprint.progress import Progress, silent
from hf_fingerprint.vault import check_outside_vaults


if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """All that was measured on a model.

    Attributes:
        model (`str`): where it is from.
        base (`dict`): what may be told of its registration.
        carriers (`tuple[str, ...]`): the marked tensors, in the order of the points' `layers`.
        data (`str`): what it was tried out on.
        images (`int`): how many images accuracy was measured on.
        attacker_image_count (`int`): how many the thief had.
        public_base (`bool`): whether the thief had the unmarked base too.
        chance (`float`): the accuracy of naming the commonest class.
        trials (`tuple[Point, ...]`): one for each suspect: the base, a copy, then as the suite has them.
        skipped (`dict[str, str]`): attacks that could not be made on this model, and why.
        all_scores (`bool`): whether the points have the scores of those who are not accused too. Without, they are
            taken out of the points as they come in, so that no report of it can show them.
    """

    model: str
    base: dict[str, Any]
    carriers: tuple[str, ...]
    data: str
    images: int
    attacker_image_count: int
    public_base: bool
    chance: float
    trials: tuple[Trial, ...]
    skipped: dict[str, str]
    all_scores: bool = False

    def __post_init__(self) -> None:
        if not self.all_scores:
            object.__setattr__(self, "points", tuple(trial.redacted() for trial in self.trials))

    def of(self, kind: str) -> list[Trial]:
        """The points of one kind."""
        return [trial for trial in self.trials if trial.kind == kind]

    @property
    def unmarked(self) -> Trial:
        """The base itself, which is nobody's copy."""
        return self.of(BASE)[0]

    @property
    def copy(self) -> Trial:
        """The copy as issued, which attacks are compared with."""
        return self.of(COPY)[0]

    @property
    def sweeps(self) -> dict[str, list[Trial]]:
        """The points of each attack on a single copy, mild ones first."""
        names = dict.fromkeys(trial.attack for trial in self.of(SINGLE))
        return {name: [trial for trial in self.of(SINGLE) if trial.attack == name] for name in names}


def evaluate(
    model: str | Path,
    data: EvaluationData | str | Path,
    out: str | Path,
    attacks: Sequence[str] | None = None,
    coalitions: Sequence[int] | None = None,
    config: FingerprintConfig | None = None,
    images: int = IMAGES,
    innocents: int = INNOCENTS,
    quick: bool = False,
    runs: int = 1,
    public_base: bool = False,
    progress: Progress | None = None,
    all_scores: bool = False,
) -> Evaluation:
    """Attacks copies of a model and measures what is left of it and of the evidence.

    The result has scores of the accused alone, since scores of others help an attacker to build a suspect that accuses
    one of them, and a report is made to be published. `out` keeps all of them, in its folders `private` (to go on
    from) and `vault-...` (with the keys): hand on the report, never the folder.

    Args:
        model (`str` or `Path`): a folder or a Hub id of a classifier of timm or transformers.
        data ([`EvaluationData`], `str` or `Path`): what to try it out on; see [`load_data`].
        out (`str` or `Path`): a folder for copies and results; run again with the same, it goes on where it stopped.
        attacks (sequence of `str`, *optional*): names or groups of `SUITE`; all by default.
        coalitions (sequence of `int`, *optional*, defaults to 3, 5 and 10): how many copies are mixed.
        config ([`FingerprintConfig`], *optional*): of the registration.
        images (`int`, *optional*, defaults to 1,000): how many images to test on, at most.
        innocents (`int`, *optional*, defaults to 10,000): how many recipients without a copy are scored.
        quick (`bool`, *optional*, defaults to `False`): whether three strengths of each attack are enough, and
            coalitions of 3 without what may follow.
        runs (`int`, *optional*, defaults to 1): how often each coalition is formed, of other holders each time.
        public_base (`bool`, *optional*, defaults to `False`): whether the thief has the unmarked base too.
        progress (callable, *optional*): a [`Progress`].
        all_scores (`bool`, *optional*, defaults to `False`): whether the result has scores of those who are not
            accused too, innocents among them: for the owner's eyes only.

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way.
    """
    jobs = plan_jobs(select_attacks(attacks), coalitions, quick, runs)
    check_outside_vaults(Path(out))
    folder, recipient_count = Path(out), 1 + max(recipient for job in jobs for recipient in job.members)
    with (
        open_evaluation_folder(folder),
        Testbed(model, folder, recipient_count, config, innocents, progress) as testbed,
    ):
        dataset = data if isinstance(data, EvaluationData) else load_data(data, testbed.built, images)
        runner = _TrialRunner(testbed, dataset, ResultStore(folder), public_base)
        trials = list(runner.trials(jobs, progress or silent))
        return Evaluation(
            model=testbed.base.source,
            base=testbed.base.describe(),
            carriers=tuple(carrier.name for carrier in testbed.base.carriers),
            data=dataset.name,
            images=len(dataset.test[1]),
            attacker_image_count=len(dataset.attacker[1]),
            public_base=public_base,
            chance=dataset.chance,
            trials=tuple(trials),
            skipped=runner.skipped,
            all_scores=all_scores,
        )


class _CannotAttackError(FingerprintError):
    """An attack that can't be made on this model, and why."""


class _TrialRunner:
    """Suspects made, tried out and judged."""

    def __init__(self, testbed: Testbed, data: EvaluationData, store: ResultStore, public_base: bool):
        self._testbed, self._data, self._store = testbed, data, store
        self._attacker = Attacker(testbed.build, *data.attacker, base=testbed.base_state() if public_base else None)
        self._copy_cache: dict[int, State] = {}
        self._first_step_result: tuple[str, State] | None = None
        self.skipped: dict[str, str] = {}

    def trials(self, jobs: Sequence[Job], progress: Progress) -> Iterator[Trial]:
        """The point of each job; an attack's sweep ends where both the mark and the model are gone."""
        ended: set[str] = set()
        done: Counter[str] = Counter()
        for job in jobs:
            if job.attack not in ended:
                try:
                    trial = self._trial(job)
                except _CannotAttackError as reason:
                    self.skipped[job.attack] = str(reason)
                    ended.add(job.attack)
                else:
                    yield trial
                    if job.kind == SINGLE and not trial.accused and trial.accuracy <= self._data.chance:
                        ended.add(job.attack)
            job_count = sum(other.kind == job.kind for other in jobs)
            done[job.kind] += 1
            step = {SINGLE: "single copies", COLLUSION: "coalitions"}.get(job.kind, job.attack)
            progress(step, done[job.kind], job_count)

    def _trial(self, job: Job) -> Trial:
        testbed = self._testbed
        key = trial_key(
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
        )
        known = self._store.trials.get(key)
        return self._store.add(key, self._measure(job)) if known is None else known

    def _measure(self, job: Job) -> Trial:
        began = time.monotonic()
        state, shares = self._make_suspect(job)
        verdict = self._testbed.trace_suspect(state, job.members)
        predicted = self._predict(state)
        fields = asdict(replace(verdict, layers=tuple(round(score, 2) for score in verdict.layers)))
        left_out = ("weights_read", "cosine")
        return Trial(
            kind=job.kind,
            attack=job.attack,
            what=job.what,
            step=job.step,
            strength=float(job.colluders)
            if job.kind == COLLUSION or job.attack_step is None
            else job.attack_step.strength,
            accuracy=float((predicted == self._data.test[1]).double().mean()),
            agreement=float((predicted == self._copy_predictions).double().mean()),
            shares=shares,
            seconds=round(time.monotonic() - began, 2),
            **{name: value for name, value in fields.items() if name not in left_out},
        )

    def _make_suspect(self, job: Job) -> "tuple[State, tuple[float, ...]]":
        """A suspect, and how much of it is from each of those it was made from."""
        if job.kind == BASE:
            return self._testbed.base_state(), ()
        if job.attack_step is None:
            return self._copy(0), (1.0,)
        steps = job.attack_step.steps if isinstance(job.attack_step, Compose) else (job.attack_step,)
        states = [self._copy(recipient) for recipient in job.members]
        mixed: Any = steps[0]
        try:
            if job.kind == COLLUSION:
                return job.attack_step(states, self._attacker), mixed.shares(states)
            state = self._after_first_step(steps[0], states[0])
            for step in steps[1:]:
                state = step(state, self._attacker)
            return state, (1.0,)
        except StorageError:
            raise
        except FingerprintError as error:
            raise _CannotAttackError(str(error)) from None
        except Exception as error:  # one attack's mistake is no reason to do without the others
            if isinstance(error, OSError) and is_disk_full_error(error):
                raise disk_full_error(Path(gettempdir())) from None
            raise _CannotAttackError(f"{type(error).__name__}: it does not work on this model.") from error

    def _after_first_step(self, step: AttackStep, state: "State") -> "State":
        """The first copy after an attack's first step, kept for the next attack that begins alike."""
        if self._first_step_result is None or self._first_step_result[0] != repr(step):
            self._first_step_result = (repr(step), step(state, self._attacker))
        return self._first_step_result[1]

    def _copy(self, recipient: int) -> "State":
        """A holder's copy, kept in memory."""
        if recipient not in self._copy_cache:
            self._copy_cache[recipient] = self._testbed.copy(recipient)
        return self._copy_cache[recipient]

    @cached_property
    def _copy_predictions(self) -> "torch.Tensor":
        return self._predict(self._copy(0))

    def _predict(self, state: "State") -> "torch.Tensor":
        """The classes that the test images are given, `(n,)`."""
        import torch

        images = self._data.test[0]
        model = self._testbed.model_of(state)
        if model is None:
            raise _CannotAttackError("It changes the model's tensors: what is left can't be tried out.")
        model = model.to(images.device)
        try:
            with torch.inference_mode():
                return torch.cat([logits(model, part).argmax(-1) for part in images.split(self._attacker.batch)])
        except RuntimeError:
            raise _CannotAttackError("It changes the model's widths: what is left does not run.") from None
