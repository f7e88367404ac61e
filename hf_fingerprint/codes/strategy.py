"""Infers the colluders' strategy from an extracted signal, and derives the best score function against it.

If colluders treat their c copies alike, the signal at a position depends on x, the number of copies that hold +1
there. Keyed signs hide which value is which, so its mean is odd, `theta_(c-x) = -theta_x`, and its variance is even.
Average, median, minority and all other strategies differ only in `theta`, which is fitted to the signal by
expectation maximization (A. P. Dempster, N. M. Laird, D. B. Rubin, J. Roy. Statist. Soc. B 39 (1977)). Of the c
copies, the k of the accused are known, and each of the u others holds +1 with probability `p_i`, so x is the number
of accused who hold +1 plus a binomial number.

The score is the log-likelihood ratio of +1 and -1 in one of the u copies, which is optimal for a single copy
(P. Meerwald, T. Furon, "Toward practical joint decoding of binary Tardos fingerprinting codes", IEEE Trans.
Information Forensics and Security 7 (2012)). It depends only on the signal, the biases and the codewords of the
accused, so the bound of `decoding.py` holds even if the fit is wrong.
"""

from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.signals import Signal, to_signal


UNKNOWN_COUNTS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135)
SAMPLES = 2048, 16384  # positions, for each start and for the best start
_BLOCK = 8192
_STEPS = 4, 12  # for each start and for the best start
_EXTREME = 32
_MEAN_PRIOR, _VARIANCE_PRIOR = 5.0, 20.0  # positions
_MIN_VARIANCE, _OUTLIER = 1e-3, 100.0  # the smallest variance and the largest value, in units of the scale


@dataclass(frozen=True, eq=False)
class CollusionStrategy:
    """The inferred strategy of c colluders.

    Attributes:
        unknown (`int`): u, the number of colluders who are not accused yet.
        scale (`float`): the magnitude of `extracted / mass` where all colluders agree; the unit of the rest.
        means (`np.ndarray` of shape `(c + 1,)`): `theta_x`, the mean of `extracted / mass` where x copies hold +1.
        variances (`np.ndarray` of shape `(c + 1,)`): `v_x`, at a position of average mass.
        log_likelihood (`float`): of the positions that it was fitted to.
    """

    unknown: int
    scale: float
    means: np.ndarray
    variances: np.ndarray
    log_likelihood: float


def infer_strategy(
    codebook: Codebook, extracted: np.ndarray, mass: np.ndarray, held: np.ndarray, known: int
) -> CollusionStrategy | None:
    """The maximum-likelihood strategy and number of colluders, trying each of `UNKNOWN_COUNTS` unknown ones.

    Args:
        codebook ([`Codebook`]): the code.
        extracted, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        held (`np.ndarray` of shape `(V,)`): how many of the accused hold +1.
        known (`int`): k, how many are accused.

    Returns:
        [`CollusionStrategy`], or `None` if no mark shows, no position is biased, or the scale over- or underflows.

    Raises:
        [`CodeError`]: if the signal can't be decoded, see [`to_signal`].
    """
    signal = to_signal(extracted, mass, codebook.length)
    used, unit = np.flatnonzero(signal.mass > 0), _scale(codebook, signal)
    with np.errstate(over="ignore"):
        scale = float(np.ldexp(unit, signal.exponent - signal.mass_exponent))  # in the caller's unit
    if scale == 0 or not np.isfinite(scale):
        return None
    few, many = (_Positions(codebook, signal, held, unit, used[:: -(-len(used) // s)]) for s in SAMPLES)
    best: CollusionStrategy | None = None
    for unknown in UNKNOWN_COUNTS:
        copies = known + unknown
        if copies < 2:
            continue
        prior = _log_binomial(few.probability, unknown)
        for start in _initial_means(copies):
            spread = max(_MIN_VARIANCE, 0.3 * float(np.mean(few.values**2)))
            fitted = CollusionStrategy(unknown, scale, start, np.full(copies + 1, spread), -np.inf)
            fitted = _maximize(fitted, few, prior, _STEPS[0])
            if best is None or fitted.log_likelihood > best.log_likelihood:
                best = fitted
    assert best is not None
    return _maximize(best, many, _log_binomial(many.probability, best.unknown), _STEPS[1])


def log_likelihood_ratio(
    codebook: Codebook, extracted: np.ndarray, mass: np.ndarray, held: np.ndarray, strategy: CollusionStrategy
) -> np.ndarray:
    """Half the log-likelihood ratio of +1 and -1 in one unknown copy, averaged over the other unknown copies.

    Args:
        codebook ([`Codebook`]): the code.
        extracted, mass, held (`np.ndarray` of shape `(V,)`): see [`infer_strategy`].
        strategy ([`CollusionStrategy`]): the inferred strategy.

    Returns:
        `np.ndarray` of shape `(V,)`: a score function, not standardized; 0 where there is no mass.
    """
    signal = to_signal(extracted, mass, codebook.length)
    unit = float(np.ldexp(strategy.scale, signal.mass_exponent - signal.exponent))
    ratio = np.zeros(codebook.length)
    used = np.flatnonzero(signal.mass > 0)
    for block in (used[start : start + _BLOCK] for start in range(0, len(used), _BLOCK)):
        positions = _Positions(codebook, signal, held, unit, block)
        prior = _log_binomial(positions.probability, strategy.unknown - 1)
        down, up = (_posterior(strategy, positions, prior, more)[0] for more in (0, 1))
        ratio[block] = (up - down) / 2
    return ratio


class _Positions:
    """Values, precisions, counts of accused who hold +1, and biases of some positions."""

    def __init__(self, codebook: Codebook, signal: Signal, held: np.ndarray, scale: float, which: np.ndarray):
        mass, limit = signal.mass, _OUTLIER * scale
        self.values = (np.clip(signal.values[which] / mass[which], -limit, limit) / scale).astype(np.float32)
        self.precision = (mass[which] / mass[mass > 0].mean()).astype(np.float32)
        self.held = held[which]
        self.probability = codebook.probability[which]


def most_biased(codebook: Codebook) -> np.ndarray:
    """The most biased 1/32 of the positions, where copies agree most."""
    return np.argsort(codebook.variance, kind="stable")[: -(-codebook.length // _EXTREME)]


def _scale(codebook: Codebook, signal: Signal) -> float:
    """The magnitude of `extracted / mass` where the colluders agree."""
    agreed = most_biased(codebook)
    total = signal.mass[agreed].sum()
    return abs(float((signal.values * np.sign(codebook.mean))[agreed].sum() / total)) if total > 0 else 0.0


def _initial_means(copies: int) -> list[np.ndarray]:
    """`theta` of the average, min-max, median and minority."""
    average = 2 * np.arange(copies + 1) / copies - 1
    agreed = np.zeros(copies + 1)
    agreed[[0, -1]] = -1, 1
    median = np.sign(average)
    return [average, agreed, median, 2 * agreed - median]


def _log_binomial(probability: np.ndarray, number: int) -> np.ndarray:
    """`log P(Bin(number, p_i) = z)`, shape `(len(p), number + 1)`."""
    z = np.arange(number + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(z[1:]))])  # their logarithms
    choices = factorials[number] - factorials - factorials[::-1]
    log = choices + np.log(probability)[:, None] * z + np.log1p(-probability)[:, None] * (number - z)
    return log.astype(np.float32)


def _posterior(
    strategy: CollusionStrategy, positions: _Positions, prior: np.ndarray, more: int
) -> tuple[np.ndarray, np.ndarray]:
    """The log-likelihood of each position and the posterior of the prior's counts, if `more` further copies hold +1.

    Single precision is several times as fast and accurate enough for a score function.
    """
    x = (positions.held + more)[:, None] + np.arange(prior.shape[1])
    means, half = strategy.means.astype(np.float32)[x], (0.5 / strategy.variances).astype(np.float32)[x]
    joint = prior - (positions.values[:, None] - means) ** 2 * half * positions.precision[:, None]
    joint -= (np.log(strategy.variances) / 2).astype(np.float32)[x]
    highest = joint.max(axis=1, keepdims=True)
    share = np.exp(joint - highest)
    total = share.sum(axis=1, keepdims=True)
    return (highest + np.log(total))[:, 0], share / total


def _maximize(strategy: CollusionStrategy, positions: _Positions, prior: np.ndarray, steps: int) -> CollusionStrategy:
    """Runs some steps of expectation maximization."""
    copies = len(strategy.means) - 1
    x = (positions.held[:, None] + np.arange(strategy.unknown + 1)).ravel()
    for _ in range(steps):
        likelihood, share = _posterior(strategy, positions, prior, 0)
        precision, values = positions.precision, positions.values
        factors = np.ones_like(precision), precision, precision * values, precision * values**2
        moments = [np.bincount(x, (share * factor[:, None]).ravel(), copies + 1) for factor in factors]
        number, weight, square = (moments[i] + moments[i][::-1] for i in (0, 1, 3))
        first = moments[2] - moments[2][::-1]
        means = (first + _MEAN_PRIOR * strategy.means) / (weight + _MEAN_PRIOR)
        squares = np.maximum(square - 2 * means * first + means**2 * weight, 0)
        pooled = squares.sum() / number.sum()
        variances = np.maximum((squares + _VARIANCE_PRIOR * pooled) / (number + _VARIANCE_PRIOR), _MIN_VARIANCE)
        log_likelihood = float(likelihood.sum(dtype=np.float64))
        strategy = CollusionStrategy(strategy.unknown, strategy.scale, means, variances, log_likelihood)
    return strategy
