"""The part of an extracted signal that the codes' mean, which all copies share, and the accused don't explain."""

import math

import numpy as np

from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.signals import Signal, from_unit_scale, to_signal
from hf_fingerprint.codes.strategy import most_biased


_RIDGE = 1e-9
_EXPLAINED, _SLIGHT = 4.0, 0.01  # standard errors, and a share: within either, the accused explain the signal


def residual_signal(codebook: Codebook, extracted: np.ndarray, mass: np.ndarray, accused: np.ndarray) -> np.ndarray:
    """The extracted signal minus its least-squares fit by the codes' mean and the accused's codewords.

    Args:
        codebook ([`Codebook`]): the code.
        extracted (`np.ndarray` of shape `(V,)`): y, weighted sums; a mark of strength 1 gives `mass * b`.
        mass (`np.ndarray` of shape `(V,)`): each position's weight, inverse to the variance of `extracted / mass`.
        accused (`np.ndarray` of shape `(k, V)`): the bits of the accused.

    Returns:
        `np.ndarray` of shape `(V,)`: `y - mass * (beta mu + sum_a gamma_a (b_a - mu))`, in the unit of `extracted`.

    Raises:
        [`CodeError`]: if the signal can't be decoded, see [`to_signal`].
    """
    signal = to_signal(extracted, mass, codebook.length)
    basis, coefficients, _ = _fit(codebook, signal, accused)
    return from_unit_scale(signal.values - coefficients @ (basis * signal.mass), signal.exponent)


def is_unexplained(codebook: Codebook, extracted: np.ndarray, mass: np.ndarray, accused: np.ndarray) -> bool:
    """Whether a signal holds more than the copies of the accused.

    Every copy carries the codes' mean. So in an average, the mean's coefficient is the sum of the shares of all
    copies; at positions so biased that copies mostly agree, this holds for any mixture. If either differs from the
    sum of the shares of the accused, another copy is in the suspect, or the copies were not averaged.

    Args:
        codebook, extracted, mass, accused: see [`residual_signal`].

    Returns:
        `bool`: whether they differ by more than 4 standard errors and by more than 1 %. Always false for fair signs,
        which have no mean, and for an empty signal.
    """
    signal = to_signal(extracted, mass, codebook.length)
    read = signal.mass > 0
    if not codebook.mean.any() or not read.any():
        return False
    basis, coefficients, gram = _fit(codebook, signal, accused)
    shares = coefficients[1:].sum()
    residual = (signal.values - coefficients @ (basis * signal.mass))[read]
    noise = float((residual**2 / signal.mass[read]).mean())
    left = np.append(1.0, -np.ones(len(coefficients) - 1))
    error = math.sqrt(noise * float(left @ np.linalg.solve(gram, left)))
    agreed = most_biased(codebook)
    precision = float((signal.mass * codebook.mean**2)[agreed].sum())
    total = float((signal.values * codebook.mean)[agreed].sum()) / precision if precision else 0.0
    slight = _SLIGHT * abs(total)
    root = math.sqrt(precision)
    in_mean = abs(coefficients[0] - shares) > max(_EXPLAINED * error, slight)
    return bool(in_mean or abs(total - shares) * root > max(_EXPLAINED * math.sqrt(noise), slight * root))


def _fit(codebook: Codebook, signal: Signal, accused: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least-squares fit by the codes' mean and the accused's centered codewords: `(basis, coefficients, gram)`."""
    mean = codebook.mean
    basis = np.concatenate([mean[None, :], 2.0 * accused - 1 - mean]) if len(accused) else mean[None, :]
    gram = (basis * signal.mass) @ basis.T
    gram += _RIDGE * (1 + float(np.trace(gram)) / len(gram)) * np.eye(len(gram))
    return basis, np.linalg.solve(gram, basis @ signal.values), gram
