"""Finds the largest amplitudes within the output budget, by measuring marked models."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle

import numpy as np

from hf_fingerprint.carriers import MarkDelta, TensorUpdate
from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.dtypes import from_float32, to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.codes import Codebook
from hf_fingerprint.errors import CarrierError
from hf_fingerprint.keys import new_secret
from hf_fingerprint.models import BuiltModel, LazyImages
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration.measuring import measurement_error
from hf_fingerprint.registration.output_budget import CAPPED_BELOW, OutputBudget
from hf_fingerprint.registration.output_comparison import BATCH, BaseOutputs, OutputComparison, compare_outputs
from hf_fingerprint.vault import Carrier


MAX_COPIES, SEARCH_BATCH = 128, 4  # copies that are measured; images for each in the search
MAX_SEARCH_STEPS, MAX_REPORT_STEPS = 8, 4  # measurements on the search images and on the report images
SEARCH_TARGET = 0.8  # share of the budget to spend on the search images; `CAPPED_BELOW` on the others
MAX_SECONDS = 120.0  # for all measurements on the report images
Measure = Callable[[np.ndarray], OutputComparison]
MeasuredAmplitudes = tuple[np.ndarray, OutputComparison]
Divide = Callable[[float, float], np.ndarray]  # a divergence and the largest `eps` to all `eps`


@dataclass(frozen=True)
class _Level:
    """The divergence that is divided among the carriers, to second order, and the largest amplitude of any."""

    kl: float
    cap: float

    def up_to(self, failed: "_Level") -> "_Level":
        """The level between this one and one that spends too much."""
        return _Level((self.kl * failed.kl) ** 0.5, (self.cap * failed.cap) ** 0.5)


def make_carriers(names: list[str], eps: np.ndarray, rms: dict[str, np.ndarray]) -> tuple[Carrier, ...]:
    """Makes carriers from amplitudes relative to the rows' root mean squares."""
    return tuple(Carrier(name, float(e), np.float32(e) * rms[name]) for name, e in zip(names, eps, strict=True))


@dataclass(frozen=True)
class MarkedModel:
    """A model that can be run with marks of any amplitudes.

    Attributes:
        checkpoint ([`Checkpoint`]): the open base.
        model ([`BuiltModel`]): the base, ready to run.
        kind (`str`): the kind of its output, one of `KINDS`.
        parameters (`dict[str, str]`): the carriers' parameter names, by their names in the file.
        rms (`dict[str, np.ndarray]`): the root mean square of each row, by carrier.
        secret (`bytes`): the model secret.
        codewords (`np.ndarray` of shape `(copies, V / 8)`): packed codewords of no recipient.
        base_outputs ([`BaseOutputs`]): what the model itself returns.
    """

    checkpoint: Checkpoint
    model: BuiltModel
    kind: str
    parameters: dict[str, str]
    rms: dict[str, np.ndarray] = field(repr=False)
    secret: bytes = field(repr=False)
    codewords: np.ndarray = field(repr=False)
    base_outputs: BaseOutputs = field(default_factory=BaseOutputs, repr=False, compare=False)

    def compare(
        self,
        eps: np.ndarray,
        images: LazyImages,
        batch: int = BATCH,
        seconds: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> OutputComparison:
        """The effect of marks of these amplitudes `(T,)`, see [`compare_outputs`]; a [`CarrierError`] if not
        finite."""
        carriers = make_carriers(list(self.parameters), eps, self.rms)
        names = self.parameters
        marks = ({names[c.name]: self._marked_weights(c, word) for c in carriers} for word in cycle(self.codewords))
        module = self.model.module
        found = compare_outputs(module, images, marks, self.kind, batch, seconds, clock, self.base_outputs)
        if not np.isfinite(found.kl):
            raise measurement_error(CarrierError(f"{self.checkpoint.source.name} gives no numbers once it is marked."))
        return found

    def _marked_weights(self, carrier: Carrier, codeword: np.ndarray) -> np.ndarray:
        info = self.checkpoint.tensors[carrier.name]
        mark = MarkDelta(self.secret, info.name, carrier.amplitude, codeword)
        update = TensorUpdate(self.secret, info.name, info.dtype, info.columns, [mark])
        parameter = self.model.module.get_parameter(self.parameters[carrier.name]).detach().float().cpu()
        raw = from_float32(parameter.numpy(), info.dtype).copy()
        for rows in block_rows(info):
            update(raw[rows.start * info.row_bytes : rows.stop * info.row_bytes])
        return to_float32(raw, info.dtype).reshape(-1, info.columns)


def random_codewords(codebook: Codebook) -> np.ndarray:
    """Packed codewords of no recipient, `(MAX_COPIES, V / 8)`."""
    return codebook.packed([new_secret() for _ in range(MAX_COPIES)])


def search_amplitudes(
    marked: MarkedModel,
    search_images: LazyImages,
    report_images: LazyImages,
    divide: Divide,
    budgets: Sequence[OutputBudget],
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredAmplitudes:
    """Changes the amplitudes until marked models keep one of the budgets and spend most of it.

    The search uses a few images. The result is measured, and corrected if needed, on others.

    Args:
        marked ([`MarkedModel`]): the model.
        search_images, report_images ([`LazyImages`]): disjoint calibration inputs.
        divide (callable): divides a divergence among the carriers under a cap, see [`spend_budget`].
        budgets (sequence of [`OutputBudget`]): see [`output_budgets`].
        progress (callable): a [`Progress`].
        clock (callable, *optional*): returns the time in seconds. Measuring on the report images takes at most two
            minutes; each measurement gets half of the time left.

    Returns:
        `(eps, comparison)`

    Raises:
        [`CarrierError`]: if no mark keeps a budget.
    """
    where = marked.checkpoint.source.name
    search = partial(marked.compare, images=search_images, batch=SEARCH_BATCH)
    largest = max(budget.max_kl for budget in budgets)
    begin = _Level(largest, largest_eps(largest))
    level, *_ = _spend_budget(search, divide, begin, budgets, MAX_SEARCH_STEPS, SEARCH_TARGET, where)
    progress(f"measuring the marked model on up to {len(report_images):,} other images", 0, None)
    end = clock() + MAX_SECONDS

    def measure(eps: np.ndarray) -> OutputComparison:
        return marked.compare(eps, report_images, BATCH, (end - clock()) / 2, clock)

    _, eps, found = _spend_budget(measure, divide, level, budgets, MAX_REPORT_STEPS, CAPPED_BELOW, where)
    return eps, found


def _spend_budget(
    measure: Measure,
    divide: Divide,
    level: _Level,
    budgets: Sequence[OutputBudget],
    max_steps: int,
    target_share: float,
    where: str,
) -> tuple[_Level, np.ndarray, OutputComparison]:
    best: tuple[_Level, np.ndarray, OutputComparison] | None = None
    failed: _Level | None = None
    failures, largest = 0, level.cap
    for _ in range(max_steps):  # the second-order prediction is an estimate, so measure and correct
        eps = divide(level.kl, level.cap)
        found = measure(eps)
        spent = min(budget.spent(found) for budget in budgets)
        if spent <= 1:
            best = level, eps, found
            if failed is None:
                if spent >= target_share or (eps >= largest).all():
                    break
                level = replace(level, kl=level.kl * 0.9 / max(spent, 0.05))
                continue
        else:
            failed = level
        if best is not None:  # from too much down, it may have gone too far: no mark is weaker than the last budget
            if budgets[-1].spent(best[2]) >= CAPPED_BELOW:
                break
            level = best[0].up_to(failed)
            continue
        if failures:  # what has a wrong sensitivity or is rounded does not follow, so shrink all, faster each time
            share = 0.9 / spent * 0.81**failures
            level = _Level(level.kl * share, float(eps.max()) * share**0.5)
        else:
            level = replace(level, kl=level.kl * 0.9 / spent)
        failures += 1
    if best is None:
        decisions = "" if budgets[-1].min_agreement is None else f" and an agreement of {found.agreement:.2%}"
        raise CarrierError(
            f"{where}: no mark keeps {budgets[-1]} on the calibration inputs; the weakest one tried has a KL of "
            f"{found.kl:.1e}{decisions}. Choose a larger --max-kl{' or a smaller --min-agreement' * bool(decisions)}."
        )
    return best
