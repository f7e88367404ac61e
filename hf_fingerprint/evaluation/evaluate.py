"""Attacks run over their sweeps and coalitions mixed, each suspect tried out and judged, one after another.

```python
evaluation = evaluate("org/model", "photos/", "evaluation", attacks=["prune", "collusion"])
write_report(evaluation, Path("evaluation"))
```
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import hf_fingerprint
from hf_fingerprint.attacks.attack import Step, Then, Thief, logits
from hf_fingerprint.checkpoints import full_disk, lacks_room
from hf_fingerprint.config import Settings
from hf_fingerprint.errors import FingerprintError, StorageError
from hf_fingerprint.evaluation.data import IMAGES, Data, load_data
from hf_fingerprint.evaluation.planning import Job, choose, plan
from hf_fingerprint.evaluation.testbed import INNOCENTS, Scene
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, COPY, SINGLE, Ledger, Point, key_of, opened
from hf_fingerprint.vault import check_outside_vaults


if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """All that was measured on a model.

    Attributes:
        model (`str`): where it is from.
        base (`dict`): what may be told of its registration.
        carriers (`tuple[str, ...]`): the marked tensors, in the order of the points' `layers`.
        data (`str`): what it was tried out on.
        images (`int`): how many images accuracy was measured on.
        stolen (`int`): how many the thief had.
        public_base (`bool`): whether the thief had the unmarked base too.
        chance (`float`): the accuracy of naming the commonest class.
        points (`tuple[Point, ...]`): one for each suspect: the base, a copy, then as the suite has them.
        skipped (`dict[str, str]`): attacks that could not be made on this model, and why.
        all_scores (`bool`): whether the points have the scores of those who are not accused too. Without, they are
            taken out of the points as they come in, so that no report of it can show them.
    """

    model: str
    base: dict[str, Any]
    carriers: tuple[str, ...]
    data: str
    images: int
    stolen: int
    public_base: bool
    chance: float
    points: tuple[Point, ...]
    skipped: dict[str, str]
    all_scores: bool = False

    def __post_init__(self) -> None:
        if not self.all_scores:
            object.__setattr__(self, "points", tuple(point.published() for point in self.points))

    def of(self, kind: str) -> list[Point]:
        """The points of one kind."""
        return [point for point in self.points if point.kind == kind]

    @property
    def unmarked(self) -> Point:
        """The base itself, which is nobody's copy."""
        return self.of(BASE)[0]

    @property
    def copy(self) -> Point:
        """The copy as issued, which attacks are compared with."""
        return self.of(COPY)[0]

    @property
    def sweeps(self) -> dict[str, list[Point]]:
        """The points of each attack on a single copy, mild ones first."""
        names = dict.fromkeys(point.attack for point in self.of(SINGLE))
        return {name: [point for point in self.of(SINGLE) if point.attack == name] for name in names}


def evaluate(
    model: str | Path,
    data: Data | str | Path,
    out: str | Path,
    attacks: Sequence[str] | None = None,
    coalitions: Sequence[int] | None = None,
    settings: Settings | None = None,
    images: int = IMAGES,
    innocents: int = INNOCENTS,
    quick: bool = False,
    runs: int = 1,
    public_base: bool = False,
    report: Callable[[str], None] | None = None,
    advance: Advance | None = None,
    all_scores: bool = False,
) -> Evaluation:
    """Attacks copies of a model and measures what is left of it and of the evidence.

    The result has scores of the accused alone, since scores of others help an attacker to build a suspect that accuses
    one of them, and a report is made to be published. `out` keeps all of them, in its folders `private` (to go on
    from) and `vault-...` (with the keys): hand on the report, never the folder.

    Args:
        model (`str` or `Path`): a folder or a Hub id of a classifier of timm or transformers.
        data ([`Data`], `str` or `Path`): what to try it out on; see [`load_data`].
        out (`str` or `Path`): a folder for copies and results; run again with the same, it goes on where it stopped.
        attacks (sequence of `str`, *optional*): names or groups of `SUITE`; all by default.
        coalitions (sequence of `int`, *optional*, defaults to 3, 5 and 10): how many copies are mixed.
        settings ([`Settings`], *optional*): of the registration.
        images (`int`, *optional*, defaults to 1,000): how many images to test on, at most.
        innocents (`int`, *optional*, defaults to 10,000): how many recipients without a copy are scored.
        quick (`bool`, *optional*, defaults to `False`): whether three strengths of each attack are enough, and
            coalitions of 3 without what may follow.
        runs (`int`, *optional*, defaults to 1): how often each coalition is formed, of other holders each time.
        public_base (`bool`, *optional*, defaults to `False`): whether the thief has the unmarked base too.
        report (callable, *optional*): told each step before the attacks.
        advance (callable, *optional*): told `(step, done, total)`.
        all_scores (`bool`, *optional*, defaults to `False`): whether the result has scores of those who are not
            accused too, innocents among them: for the owner's eyes only.

    Raises:
        [`FingerprintError`]: in one sentence, what is in the way.
    """
    jobs = plan(choose(attacks), coalitions, quick, runs)
    check_outside_vaults(Path(out))
    folder, holders = Path(out), 1 + max(holder for job in jobs for holder in job.members)
    with (
        opened(folder),
        Scene(model, folder, holders, settings, innocents, report) as scene,
    ):
        given = data if isinstance(data, Data) else load_data(data, scene.built, images)
        trial = _Trial(scene, given, Ledger(folder), public_base)
        points = list(trial.points(jobs, advance or _silent))
        return Evaluation(
            model=scene.base.source,
            base=scene.base.describe(),
            carriers=tuple(carrier.name for carrier in scene.base.carriers),
            data=given.name,
            images=len(given.test[1]),
            stolen=len(given.thief[1]),
            public_base=public_base,
            chance=given.chance,
            points=tuple(points),
            skipped=trial.skipped,
            all_scores=all_scores,
        )


class _CannotAttackError(FingerprintError):
    """An attack that can't be made on this model, and why."""


class _Trial:
    """Suspects made, tried out and judged."""

    def __init__(self, scene: Scene, data: Data, ledger: Ledger, public_base: bool):
        self._scene, self._data, self._ledger = scene, data, ledger
        self._thief = Thief(scene.build, *data.thief, base=scene.clean() if public_base else None)
        self._known: dict[int, State] = {}
        self._first: tuple[str, State] | None = None
        self.skipped: dict[str, str] = {}

    def points(self, jobs: Sequence[Job], advance: Advance) -> Iterator[Point]:
        """The point of each job; an attack's sweep ends where both the mark and the model are gone."""
        ended: set[str] = set()
        for job in jobs:
            if job.attack not in ended:
                try:
                    point = self._point(job)
                except _CannotAttackError as reason:
                    self.skipped[job.attack] = str(reason)
                    ended.add(job.attack)
                else:
                    yield point
                    if job.kind == SINGLE and not point.accused and point.accuracy <= self._data.chance:
                        ended.add(job.attack)
            alike = sum(other.kind == job.kind for other in jobs)
            advance({SINGLE: "single copies", COLLUSION: "coalitions"}.get(job.kind, job.attack), 1, alike)

    def _point(self, job: Job) -> Point:
        scene = self._scene
        key = key_of(
            version=hf_fingerprint.__version__,
            base=scene.base.base_id,
            model=scene.base.content_hash,
            settings=asdict(scene.settings),
            data=self._data.digest,
            innocents=scene.innocents,
            public_base=self._thief.base is not None,
            attack=job.attack,
            what=job.what,
            colluders=job.colluders,
            **({} if job.members == tuple(range(job.colluders)) else {"members": job.members}),
        )
        known = self._ledger.points.get(key)
        return self._ledger.add(key, self._measure(job)) if known is None else known

    def _measure(self, job: Job) -> Point:
        began = time.monotonic()
        state, shares = self._made(job)
        judged = self._scene.judge(state, job.members)
        predicted = self._predict(state)
        told = asdict(replace(judged, layers=tuple(round(score, 2) for score in judged.layers)))
        left_out = ("weights_read", "cosine")
        return Point(
            kind=job.kind,
            attack=job.attack,
            what=job.what,
            step=job.step,
            strength=float(job.colluders) if job.kind == COLLUSION or job.how is None else job.how.strength,
            accuracy=float((predicted == self._data.test[1]).double().mean()),
            agreement=float((predicted == self._of_copy).double().mean()),
            shares=shares,
            seconds=round(time.monotonic() - began, 2),
            **{name: value for name, value in told.items() if name not in left_out},
        )

    def _made(self, job: Job) -> "tuple[State, tuple[float, ...]]":
        """A suspect, and how much of it is from each of those it was made from."""
        if job.kind == BASE:
            return self._scene.clean(), ()
        if job.how is None:
            return self._copy(0), (1.0,)
        steps = job.how.steps if isinstance(job.how, Then) else (job.how,)
        states = [self._copy(holder) for holder in job.members]
        mixed: Any = steps[0]
        try:
            if job.kind == COLLUSION:
                return job.how(states, self._thief), mixed.shares(states)
            state = self._begun(steps[0], states[0])
            for step in steps[1:]:
                state = step(state, self._thief)
            return state, (1.0,)
        except StorageError:
            raise
        except FingerprintError as error:
            raise _CannotAttackError(str(error)) from None
        except Exception as error:  # one attack's mistake is no reason to do without the others
            if isinstance(error, OSError) and lacks_room(error):
                raise full_disk(Path(gettempdir())) from None
            raise _CannotAttackError(f"{type(error).__name__}: it does not work on this model.") from error

    def _begun(self, step: Step, state: "State") -> "State":
        """The first copy after an attack's first step, kept for the next attack that begins alike."""
        if self._first is None or self._first[0] != repr(step):
            self._first = (repr(step), step(state, self._thief))
        return self._first[1]

    def _copy(self, holder: int) -> "State":
        """A holder's copy, kept in memory."""
        if holder not in self._known:
            self._known[holder] = self._scene.copy(holder)
        return self._known[holder]

    @cached_property
    def _of_copy(self) -> "torch.Tensor":
        return self._predict(self._copy(0))

    def _predict(self, state: "State") -> "torch.Tensor":
        """The classes that the test images are given, `(n,)`."""
        import torch

        images = self._data.test[0]
        model = self._scene.model_of(state)
        if model is None:
            raise _CannotAttackError("It changes the model's tensors: what is left can't be tried out.")
        model = model.to(images.device)
        try:
            with torch.inference_mode():
                return torch.cat([logits(model, part).argmax(-1) for part in images.split(self._thief.batch)])
        except RuntimeError:
            raise _CannotAttackError("It changes the model's widths: what is left does not run.") from None


def _silent(step: str, done: int, total: int) -> None:
    pass
