"""Evaluation of a model: attacks over their sweeps and collusions, each suspect measured and traced.

```python
evaluation = evaluate("org/model", "photos/", "evaluation", attacks=["prune", "collusion"])
write_report(evaluation, Path("evaluation"))
```
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.attacks.suite import SUITE
from hf_fingerprint.attacks.suite_entry import ANCESTOR
from hf_fingerprint.checkpoints import HubOptions, open_checkpoint
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.evaluation.ancestor_model import read_ancestor
from hf_fingerprint.evaluation.class_numbers import class_names_of
from hf_fingerprint.evaluation.data import IMAGES, EvaluationData, load_data
from hf_fingerprint.evaluation.planning import plan_jobs, select_attacks
from hf_fingerprint.evaluation.testbed import INNOCENTS, Testbed, build_or_raise
from hf_fingerprint.evaluation.trial_runner import TrialRunner
from hf_fingerprint.evaluation.trials import (
    BASE,
    COPY,
    SINGLE,
    ResultStore,
    Trial,
    open_evaluation_folder,
    open_job_locks,
)
from hf_fingerprint.progress import Progress, shows_progress, silent
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr
from hf_fingerprint.vault import check_outside_vaults


if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation(PrintableResult):
    """The results of an evaluation.

    Attributes:
        model (`str`): the model's folder or Hub id.
        base (`dict`): the public facts of its registration; see [`Base.describe`].
        carriers (`tuple[str, ...]`): the marked tensors, in the order of the trials' `layers`.
        data (`str`): the name of the test data.
        images (`int`): how many images accuracy was measured on.
        attacker_image_count (`int`): how many images the attacker had.
        public_base (`bool`): whether the attacker had the unmarked base.
        chance (`float`): the accuracy of always predicting the most frequent class.
        trials (`tuple[Trial, ...]`): one per suspect: the base, a copy as issued, then the suite's attacks.
        skipped (`dict[str, str]`): attacks that do not work on this model, and why.
        all_scores (`bool`, *optional*, defaults to `False`): whether trials include scores of recipients who are not
            accused. If not, the constructor redacts all trials.
        ancestor (`str` or `None`): the public model that the attacker had, from which the base was fine-tuned.
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
    ancestor: str | None = None

    def __post_init__(self) -> None:
        if not self.all_scores:
            object.__setattr__(self, "trials", tuple(trial.redacted() for trial in self.trials))

    def of(self, kind: str) -> list[Trial]:
        """The trials of one kind."""
        return [trial for trial in self.trials if trial.kind == kind]

    @property
    def unmarked(self) -> Trial:
        """The trial of the base itself."""
        return self.of(BASE)[0]

    @property
    def copy(self) -> Trial:
        """The trial of the copy as issued, the reference for attacks."""
        return self.of(COPY)[0]

    @property
    def sweeps(self) -> dict[str, list[Trial]]:
        """The trials of each attack on a single copy, mildest first."""
        names = dict.fromkeys(trial.attack for trial in self.of(SINGLE))
        return {name: [trial for trial in self.of(SINGLE) if trial.attack == name] for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON types, as in the report; see [`summarize`]."""
        from hf_fingerprint.evaluation.report import summarize

        return summarize(self)

    def blocks(self) -> Iterator[Block]:
        """The lines and tables of the report."""
        from hf_fingerprint.evaluation.report import report_blocks

        return report_blocks(self)

    def __repr__(self) -> str:
        trials, caught = len(self.trials), sum(trial.accused for trial in self.trials)
        return one_line_repr(self, model=self.model, data=self.data, trials=trials, accused=caught)


@shows_progress
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
    ancestor: str | Path | None = None,
    fine_tuning_steps: int | None = None,
    *,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> Evaluation:
    """Attacks copies of a model and measures the accuracy and the evidence that remain.

    The result has scores of the accused only, so its report can be published: scores of others help an attacker to
    build a suspect that accuses one of them. The folder `out` keeps all scores in `private` and the keys in
    `vault-...`. Share the report, never the folder.

    Args:
        model (`str` or `Path`): a folder or Hub id of a timm or transformers classifier.
        data ([`EvaluationData`], `str` or `Path`): the labeled images; see [`load_data`].
        out (`str` or `Path`): a folder for copies and results. Call again with the same folder to resume.
        attacks (sequence of `str`, *optional*): names or groups of `SUITE`; all by default.
        coalitions (sequence of `int`, *optional*, defaults to 3, 5 and 10): coalition sizes.
        config ([`FingerprintConfig`], *optional*): the registration's configuration.
        images (`int`, *optional*, defaults to 1,000): the most images to test on.
        innocents (`int`, *optional*, defaults to 10,000): how many recipients without a copy to score.
        quick (`bool`, *optional*, defaults to `False`): see [`plan_jobs`].
        runs (`int`, *optional*, defaults to 1): runs of each coalition, with other recipients each time.
        public_base (`bool`, *optional*, defaults to `False`): give the attacker the unmarked base too.
        progress (callable, *optional*): a [`Progress`].
        all_scores (`bool`, *optional*, defaults to `False`): include scores of recipients who are not accused. Do not
            publish such a result.
        ancestor (`str` or `Path`, *optional*): the public model from which the model was fine-tuned, a path or Hub id
            such as `org/name@revision`. The attacker has it. Attacks that need it are left out without it.
        fine_tuning_steps (`int`, *optional*): see [`plan_jobs`].
        device (`str` or `torch.device`, *optional*): where models run and train, such as `"cuda"`. Defaults to the
            CPU, or to the device of the images in `data`. Only the CPU was tested.
        revision, token, cache_dir, subfolder, variant (*optional*): which files of the model, and how to reach them;
            see [`HubOptions`].

    Raises:
        [`FingerprintError`]: if the model can't be marked or run, the images do not fit it, or a name is unknown.
    """
    options = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant)
    chosen = select_attacks(attacks)
    possible = [name for name in chosen if ancestor is not None or SUITE[name].group != ANCESTOR]
    jobs = plan_jobs(possible, coalitions, quick, runs, fine_tuning_steps)
    check_outside_vaults(Path(out))
    folder, count = Path(out), 1 + max(recipient for job in jobs for recipient in job.members)
    dataset = data
    if not isinstance(dataset, EvaluationData):
        dataset = _load_data(model, dataset, images, options, progress or silent)
    dataset = dataset.on(device)
    with ExitStack() as stack:
        opened_ancestor = (
            None if ancestor is None else stack.enter_context(open_checkpoint(ancestor, options=options.access))
        )
        stack.enter_context(open_evaluation_folder(folder))
        locks = stack.enter_context(open_job_locks(folder))
        with locks.wait_for("the copies"):  # the first process issues them, and the others find them
            testbed = stack.enter_context(
                Testbed(model, folder, count, config, innocents, progress, device=device, options=options)
            )
        known = None if opened_ancestor is None else read_ancestor(testbed, opened_ancestor)
        testbed.ancestor = None if known is None else known.reader
        runner = TrialRunner(testbed, dataset, ResultStore(folder), locks, public_base, known)
        if possible != chosen:
            runner.skipped[ANCESTOR] = "The attacks of this group need the public ancestor: give it with --ancestor."
        trials = runner.trials(jobs, progress or silent)
        return Evaluation(
            model=testbed.base.source,
            base=testbed.base.describe(),
            carriers=tuple(carrier.name for carrier in testbed.base.carriers),
            data=dataset.name,
            images=len(dataset.test[1]),
            attacker_image_count=len(dataset.attacker[1]),
            public_base=public_base,
            chance=dataset.chance,
            trials=trials,
            skipped=runner.skipped,
            all_scores=all_scores,
            ancestor=None if known is None else known.name,
        )


def _load_data(
    model: str | Path, data: str | Path, images: int, options: HubOptions, progress: Progress
) -> EvaluationData:
    """The images, checked against the model before anything is registered."""
    progress("reading the images", 0, None)
    with open_checkpoint(model, options=options) as checkpoint:
        return load_data(data, build_or_raise(checkpoint, str(model)), images, labels=class_names_of(checkpoint))
