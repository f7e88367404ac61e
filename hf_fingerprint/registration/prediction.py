"""Predicts a base's code length and the robustness of its mark, by formula."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import TensorInfo
from hf_fingerprint.checkpoints.dtypes import WRITABLE
from hf_fingerprint.codes import Codebook, coalition_by_formula
from hf_fingerprint.codes.coalition import expected_score
from hf_fingerprint.codes.design import LENGTHS, WEIGHTS_PER_POSITION
from hf_fingerprint.config import SMALL_MAX_KL
from hf_fingerprint.errors import CarrierError
from hf_fingerprint.registration.output_budget import limiting_measure
from hf_fingerprint.vault import Base


DRIFT, LARGE_DRIFT = 0.02, 0.2  # about those of fine-tuning with AdamW at 1e-4 and 1e-3


def code_length(weights: int, where: str) -> int:
    """V for a number of carrier weights: the largest power of two up to 65,536 with at least 40 weights per position.

    Raises:
        [`CarrierError`]: if there are too few weights for 64 positions.
    """
    if weights < 64 * WEIGHTS_PER_POSITION:
        raise CarrierError(
            f"{where} has {weights} convolution and linear weights outside its stem and classifier, and a mark needs "
            f"{64 * WEIGHTS_PER_POSITION}: the model is too small."
        )
    return min(LENGTHS[-1], 1 << (weights // WEIGHTS_PER_POSITION).bit_length() - 1)


def check_dtypes(tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Checks that the weights have dtypes that can be marked.

    Raises:
        [`CarrierError`]: if too many have another dtype.
    """
    weights: Counter[str] = Counter()
    for info in tensors.values():
        if len(info.shape) > 1:
            weights[info.dtype] += info.rows * info.columns
    marked = sum(count for dtype, count in weights.items() if dtype in WRITABLE)
    others = {dtype: count for dtype, count in weights.items() if dtype not in WRITABLE}
    if marked < 64 * WEIGHTS_PER_POSITION <= sum(others.values()):
        listed = ", ".join(sorted(others, key=lambda dtype: -others[dtype]))
        raise CarrierError(
            f"{where} has weights of dtype {listed}, and only F32, F16 and BF16 can be marked: convert the model, for "
            f"instance with model.float(), and save it again."
        )


def drift_noise(counts: np.ndarray, eps: np.ndarray, length: int, drift: float = DRIFT) -> float:
    """The extracted signal's noise at one position after a drift of the weights, in units of the mark's amplitude.

    Args:
        counts (`np.ndarray` of shape `(T,)`): the number of weights in each carrier.
        eps (`np.ndarray` of shape `(T,)`): each carrier's amplitude, relative to its rows' root mean square.
        length (`int`): V.
        drift (`float`, *optional*, defaults to 0.02): the drift's standard deviation, relative to the rows' root mean
            square; the default is about that of fine-tuning with AdamW at 1e-4.
    """
    energy = float((counts * eps**2).sum()) / length
    return drift / np.sqrt(energy) if energy else float("inf")


def score_after_drift(codebook: Codebook, counts: np.ndarray, eps: np.ndarray, drift: float = DRIFT) -> float:
    """The expected score of one leaked copy after a drift, by formula; see [`drift_noise`]."""
    covered = min(1.0, float(counts.sum()) / codebook.length)  # fewer weights than positions leave some without
    noise = drift_noise(counts, eps, codebook.length, drift) * covered**0.5
    return covered**0.5 * expected_score(codebook, 1, noise)


def predicted_score(base: Base, drift: float = DRIFT, carriers: Collection[str] | None = None) -> float:
    """The expected score of one leaked copy of a base after a drift, by formula.

    Args:
        base ([`Base`]): the registered base.
        drift (`float`, *optional*, defaults to 0.02): see [`drift_noise`].
        carriers (collection of `str`, *optional*): the carriers that hold the mark, by default all.
    """
    counts, eps = _carrier_counts_and_eps(base)
    marked = np.array([carriers is None or carrier.name in carriers for carrier in base.carriers])
    return score_after_drift(base.codebook(), counts[marked], eps[marked], drift) if marked.any() else 0.0


def as_at_budget(base: Base, max_kl: float) -> Base:
    """A base with the amplitudes that it would have under another, smaller budget, for predictions.

    Args:
        base ([`Base`]): the registered base. One whose output is not measured is returned unchanged.
        max_kl (`float`): the budget, in nats.
    """
    if not base.calibration.kl or base.calibration.eps is not None:
        return base
    scale, cap = min(1.0, (max_kl / base.calibration.kl) ** 0.5), largest_eps(max_kl)
    carriers = (replace(carrier, eps=min(cap, scale * carrier.eps)) for carrier in base.carriers)
    return replace(base, carriers=tuple(carriers))


def predictions(base: Base) -> dict[str, float | int | str | None]:
    """What limits the mark's strength and what the strength yields, for JSON: scores of one leaked copy as issued and
    after drifts of 2 and 20 %, the averaging coalition, and the last two at a budget of 1e-4 nats."""
    small = as_at_budget(base, SMALL_MAX_KL)
    return {
        "limited_by": limiting_measure(base.calibration),
        "predicted_score_as_issued": predicted_score(base, 0.0),
        "predicted_score": predicted_score(base),
        "predicted_score_large_drift": predicted_score(base, LARGE_DRIFT),
        "predicted_score_large_drift_small_budget": predicted_score(small, LARGE_DRIFT),
        "predicted_coalition": predicted_coalition(base),
        "predicted_coalition_small_budget": predicted_coalition(small),
    }


def predicted_coalition(base: Base, drift: float = DRIFT) -> int:
    """The largest averaging coalition that the base's code withstands after a drift, by formula."""
    noise = drift_noise(*_carrier_counts_and_eps(base), base.length, drift)
    return coalition_by_formula(base.codebook(), base.expected_recipients, base.alpha, noise).size


def _carrier_counts_and_eps(base: Base) -> tuple[np.ndarray, np.ndarray]:
    counts = [np.prod(base.tensors[carrier.name].shape) for carrier in base.carriers]
    return np.array(counts), np.array([carrier.eps for carrier in base.carriers])
