"""Finds the largest amplitudes within the output budget, by measuring marked models."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from hf_fingerprint.registration.output_comparison import BATCH, OutputComparison, compare_outputs
from hf_fingerprint.vault import Carrier


MAX_COPIES, SEARCH_BATCH = 128, 4  # copies that are measured; images for each in the search
MAX_SEARCH_STEPS, MAX_REPORT_STEPS = 8, 4  # measurements on the search images and on the report images
SEARCH_TARGET, REPORT_TARGET = 0.8, 0.5  # shares of the budget to spend
MAX_SECONDS = 120.0  # for all measurements on the report images
Measure = Callable[[np.ndarray], OutputComparison]
MeasuredAmplitudes = tuple[np.ndarray, OutputComparison]


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
    """

    checkpoint: Checkpoint
    model: BuiltModel
    kind: str
    parameters: dict[str, str]
    rms: dict[str, np.ndarray] = field(repr=False)
    secret: bytes = field(repr=False)
    codewords: np.ndarray = field(repr=False)

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
        found = compare_outputs(self.model.module, images, marks, self.kind, batch, seconds, clock)
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
    eps: np.ndarray,
    max_kl: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredAmplitudes:
    """Scales the amplitudes until marked models keep the output budget and spend most of it.

    The search uses a few images. The result is measured, and corrected if needed, on others.

    Args:
        marked ([`MarkedModel`]): the model.
        search_images, report_images ([`LazyImages`]): disjoint calibration inputs.
        eps (`np.ndarray` of shape `(T,)`): the initial amplitudes.
        max_kl (`float`): the budget, in nats.
        progress (callable): a [`Progress`].
        clock (callable, *optional*): returns the time in seconds. Measuring on the report images takes at most two
            minutes; each measurement gets half of the time left.

    Returns:
        `(eps, comparison)`

    Raises:
        [`CarrierError`]: if no mark keeps the budget.
    """
    where = marked.checkpoint.source.name
    search = partial(marked.compare, images=search_images, batch=SEARCH_BATCH)
    eps, _ = _spend_budget(search, eps, max_kl, MAX_SEARCH_STEPS, SEARCH_TARGET, where)
    progress(f"measuring the marked model on up to {len(report_images):,} other images", 0, None)
    end = clock() + MAX_SECONDS

    def measure(eps: np.ndarray) -> OutputComparison:
        return marked.compare(eps, report_images, BATCH, (end - clock()) / 2, clock)

    return _spend_budget(measure, eps, max_kl, MAX_REPORT_STEPS, REPORT_TARGET, where)


def _spend_budget(
    measure: Measure, eps: np.ndarray, max_kl: float, max_steps: int, target_share: float, where: str
) -> MeasuredAmplitudes:
    cap = largest_eps(max_kl)
    best: MeasuredAmplitudes | None = None
    failures = 0
    for _ in range(max_steps):  # the second-order prediction is an estimate, so measure and scale
        found = measure(eps)
        if found.kl <= max_kl:
            best = eps, found
            if failures or found.kl >= target_share * max_kl or (eps >= cap).all():
                break
            eps = np.minimum(cap, eps * np.sqrt(0.9 * max_kl / max(found.kl, 0.05 * max_kl)))
        elif best is not None:
            break
        else:  # rounding to half precision costs too and doesn't shrink with the mark, so shrink faster each time
            eps = eps * np.sqrt(0.9 * max_kl / found.kl) * 0.9**failures
            failures += 1
    if best is None:
        raise CarrierError(
            f"{where}: no mark keeps a KL of {max_kl:.1e} on the calibration inputs; the weakest one tried has "
            f"{found.kl:.1e}. Choose a larger --max-kl."
        )
    return best
