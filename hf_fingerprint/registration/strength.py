"""How strong a mark may be: the budget on the output, spent by what a marked model is measured to do."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from hf_fingerprint.carriers import MarkDelta, TensorUpdate
from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.codes import Codebook
from hf_fingerprint.errors import CarrierError
from hf_fingerprint.keys import new_secret
from hf_fingerprint.models import BuiltModel, LazyImages
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration.measuring import measurement_error
from hf_fingerprint.registration.output_comparison import BATCH, OutputComparison, compare_outputs
from hf_fingerprint.vault import Carrier


MAX_COPIES, SEARCH_BATCH = 128, 4  # copies that are measured at most; images for each in the search
MAX_SEARCH_STEPS, MAX_REPORT_STEPS = 8, 4  # measurements at most, on few images and on many
SEARCH_TARGET, REPORT_TARGET = 0.8, 0.5  # of the budget, spent
MAX_SECONDS = 120.0  # for all measurements on many images
Measure = Callable[[np.ndarray], OutputComparison]
MeasuredAmplitudes = tuple[np.ndarray, OutputComparison]


def make_carriers(names: list[str], eps: np.ndarray, rms: dict[str, np.ndarray]) -> tuple[Carrier, ...]:
    """Carriers from each one's share of its rows' root mean squares."""
    return tuple(Carrier(name, float(e), np.float32(e) * rms[name]) for name, e in zip(names, eps, strict=True))


@dataclass(frozen=True)
class MarkedModel:
    """A model as it answers with a mark of any strength.

    Attributes:
        checkpoint ([`Checkpoint`]): the open base.
        model ([`BuiltModel`]): the same, ready to run.
        kind (`str`): of its output, one of `KINDS`.
        parameters (`dict[str, str]`): the carriers' names in the file and in the model.
        rms (`dict[str, np.ndarray]`): root mean square of each row.
        secret (`bytes`): the model secret.
        codewords (`np.ndarray` of shape `(copies, V / 8)`): of copies that nobody has, packed.
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
        """What marks of these strengths `(T,)` do to the output; see [`compare_outputs`].

        Raises:
            [`CarrierError`]: if the output is not a number.
        """
        carriers = make_carriers(list(self.parameters), eps, self.rms)
        marks = (
            {self.parameters[c.name]: self._marked_weights(c, each) for c in carriers}
            for each in cycle(self.codewords)
        )
        found = compare_outputs(self.model.module, images, marks, self.kind, batch, seconds, clock)
        if not np.isfinite(found.kl):
            raise measurement_error(CarrierError(f"{self.checkpoint.source.name} gives no numbers once it is marked."))
        return found

    def _marked_weights(self, carrier: Carrier, codeword: np.ndarray) -> np.ndarray:
        checkpoint, info = self.checkpoint, self.checkpoint.tensors[carrier.name]
        mark = MarkDelta(self.secret, info.name, carrier.amplitude, codeword)
        update = TensorUpdate(self.secret, info.name, info.dtype, info.columns, [mark])
        raw = checkpoint.read(info, out=np.empty(info.nbytes, np.uint8))
        for rows in block_rows(info):
            update(raw[rows.start * info.row_bytes : rows.stop * info.row_bytes])
        return to_float32(raw, info.dtype).reshape(-1, info.columns)


def random_codewords(codebook: Codebook) -> np.ndarray:
    """Codewords of copies that nobody has, packed, `(COPIES, V / 8)`."""
    return codebook.packed([new_secret() for _ in range(MAX_COPIES)])


def search_amplitudes(
    marked: MarkedModel,
    few: LazyImages,
    many: LazyImages,
    eps: np.ndarray,
    max_kl: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> MeasuredAmplitudes:
    """Scales the amplitudes until a marked model's output keeps the budget and spends most of it: first on few images,
    then on many others, of which the result is told.

    Args:
        marked ([`MarkedModel`]): the model.
        few, many ([`LazyImages`]): calibration inputs, none of them in both.
        eps (`np.ndarray` of shape `(T,)`): where to begin.
        max_kl (`float`): the budget, in nats.
        progress (callable): a [`Progress`].
        clock (callable, *optional*): the time, in seconds. Measuring on many images takes two minutes at most; each
            measurement gets half of what is left, as it may show that another is needed.

    Returns:
        `(eps, comparison)`

    Raises:
        [`CarrierError`]: if no mark keeps the budget.
    """
    where = marked.checkpoint.source.name
    eps, _ = _spend_budget(
        lambda eps: marked.compare(eps, few, SEARCH_BATCH), eps, max_kl, MAX_SEARCH_STEPS, SEARCH_TARGET, where
    )
    progress(f"measuring the marked model on up to {len(many):,} other images", 0, None)
    end = clock() + MAX_SECONDS

    def measure(eps: np.ndarray) -> OutputComparison:
        return marked.compare(eps, many, BATCH, (end - clock()) / 2, clock)

    return _spend_budget(measure, eps, max_kl, MAX_REPORT_STEPS, REPORT_TARGET, where)


def _spend_budget(
    measure: Measure, eps: np.ndarray, max_kl: float, max_steps: int, target_share: float, where: str
) -> MeasuredAmplitudes:
    cap = largest_eps(max_kl)
    best: MeasuredAmplitudes | None = None
    failures = 0
    for _ in range(max_steps):  # the second order is an estimate; the budget is spent by what is measured
        found = measure(eps)
        if found.kl <= max_kl:
            best = eps, found
            if failures or found.kl >= target_share * max_kl or (eps >= cap).all():
                break
            eps = np.minimum(cap, eps * np.sqrt(0.9 * max_kl / max(found.kl, 0.05 * max_kl)))
        elif best is not None:
            break
        else:  # rounding to half precision costs too, and doesn't shrink with the mark: shrink faster each time
            eps = eps * np.sqrt(0.9 * max_kl / found.kl) * 0.9**failures
            failures += 1
    if best is None:
        raise CarrierError(
            f"{where}: no mark keeps a KL of {max_kl:.1e} on the calibration inputs, the weakest tried has "
            f"{found.kl:.1e}: choose a larger --max-kl."
        )
    return best
