"""What the pirates did, inferred from a reading, and the score function that tells most against it.

Where pirates treat their c copies alike, the reading at a position depends on x, the number of copies that hold +1
there. Keyed signs hide from them which value is which, so its mean is odd, `theta_(c-x) = -theta_x`, and its variance
even. Average, median, minority and whatever else are then nothing but different `theta`, and these are fitted to the
reading by expectation maximisation (A. P. Dempster, N. M. Laird, D. B. Rubin, J. Roy. Statist. Soc. B 39 (1977)): of
the c copies k are known, those of the recipients accused already, and of the u others each holds +1 with probability
`p_i`, so that x is k_i plus a binomial number.

The score is the logarithm of the likelihood ratio of +1 and -1 in one of the u copies: the best for a single copy
(P. Meerwald, T. Furon, "Toward practical joint decoding of binary Tardos fingerprinting codes", IEEE Trans.
Information Forensics and Security 7 (2012)). Everything follows from the reading, the biases and the codewords of the
accused, so the bound of `decoding.py` holds however wrong the fit may be.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln

from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.signals import Signal, to_signal


UNKNOWN_COUNTS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135)
SAMPLES = 2048, 16384  # positions, for each start and for the best of them
_BLOCK = 8192
_STEPS = 4, 12  # the same
_EXTREME = 32
_MEAN_PRIOR, _VARIANCE_PRIOR = 5.0, 20.0  # positions
_FLOOR, _OUTLIER = 1e-3, 100.0  # the least variance and the largest value, in units of the scale


@dataclass(frozen=True, eq=False)
class CollusionStrategy:
    """What c pirates did, as far as a reading tells.

    Attributes:
        unknown (`int`): u, how many pirates there are beside those accused.
        scale (`float`): what a bit reads as where all pirates agree; the unit of the rest.
        means (`np.ndarray` of shape `(c + 1,)`): `theta_x`, the mean of `reading / mass` where x copies hold +1.
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
    """The strategy and the number of pirates that make a reading likeliest, of `UNKNOWN_COUNTS` further pirates.

    Args:
        codebook ([`Codebook`]): the code.
        reading, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        held (`np.ndarray` of shape `(V,)`): how many of the accused hold +1.
        known (`int`): k, how many are accused.

    Returns:
        [`CollusionStrategy`] or `None`: nothing, where no mark shows, no position is biased, or what a bit reads as in the
        caller's unit is too large or small for a number.

    Raises:
        [`CodeError`]: if the reading can't be decoded, see [`to_signal`].
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
            spread = max(_FLOOR, 0.3 * float(np.mean(few.values**2)))
            fitted = CollusionStrategy(unknown, scale, start, np.full(copies + 1, spread), -np.inf)
            fitted = _maximize(fitted, few, prior, _STEPS[0])
            if best is None or fitted.log_likelihood > best.log_likelihood:
                best = fitted
    assert best is not None
    return _maximize(best, many, _log_binomial(many.probability, best.unknown), _STEPS[1])


def log_likelihood_ratio(
    codebook: Codebook, extracted: np.ndarray, mass: np.ndarray, held: np.ndarray, strategy: CollusionStrategy
) -> np.ndarray:
    """Half the logarithm of the likelihood ratio of +1 and -1 in one unknown copy, the others left to chance.

    Args:
        codebook ([`Codebook`]): the code.
        reading, mass, held (`np.ndarray` of shape `(V,)`): see [`infer_strategy`].
        strategy ([`CollusionStrategy`]): what was inferred.

    Returns:
        `np.ndarray` of shape `(V,)`: a score function, not standardised; 0 where there is no mass.
    """
    signal = to_signal(extracted, mass, codebook.length)
    unit = float(np.ldexp(strategy.scale, signal.mass_exponent - signal.exponent))
    ratio = np.zeros(codebook.length)
    for block in _blocks(np.flatnonzero(signal.mass > 0)):
        positions = _Positions(codebook, signal, held, unit, block)
        prior = _log_binomial(positions.probability, strategy.unknown - 1)
        down, _ = _posterior(strategy, positions, prior, 0)
        up, _ = _posterior(strategy, positions, prior, 1)
        ratio[block] = (up - down) / 2
    return ratio


class _Positions:
    """Some positions: what is read there, how well, how many of the accused hold +1, and the bias."""

    def __init__(self, codebook: Codebook, signal: Signal, held: np.ndarray, scale: float, which: np.ndarray):
        mass, limit = signal.mass, _OUTLIER * scale
        values = np.clip(signal.values[which] / mass[which], -limit, limit) / scale
        self.values = values.astype(np.float32)
        self.precision = (mass[which] / mass[mass > 0].mean()).astype(np.float32)
        self.held = held[which]
        self.probability = codebook.probability[which]


def _blocks(positions: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(positions), _BLOCK):
        yield positions[start : start + _BLOCK]


def most_biased(codebook: Codebook) -> np.ndarray:
    """The most biased positions, one in 32: there copies agree more than anywhere."""
    return np.argsort(codebook.variance, kind="stable")[: -(-codebook.length // _EXTREME)]


def _scale(codebook: Codebook, signal: Signal) -> float:
    """What a bit reads as where the pirates agree."""
    agreed = most_biased(codebook)
    total = signal.mass[agreed].sum()
    return abs(float((signal.values * np.sign(codebook.mean))[agreed].sum() / total)) if total > 0 else 0.0


def _initial_means(copies: int) -> list[np.ndarray]:
    """`theta` of the average, of half minimum and half maximum, of the median and of the minority."""
    average = 2 * np.arange(copies + 1) / copies - 1
    agreed = np.zeros(copies + 1)
    agreed[[0, -1]] = -1, 1
    median = np.sign(average)
    return [average, agreed, median, 2 * agreed - median]


def _log_binomial(probability: np.ndarray, number: int) -> np.ndarray:
    """`log P(Bin(number, p_i) = z)`, shape `(len(p), number + 1)`."""
    z = np.arange(number + 1)
    choices = gammaln(number + 1) - gammaln(z + 1) - gammaln(number - z + 1)
    log = choices + np.log(probability)[:, None] * z + np.log1p(-probability)[:, None] * (number - z)
    return log.astype(np.float32)


def _posterior(
    strategy: CollusionStrategy, positions: _Positions, prior: np.ndarray, more: int
) -> tuple[np.ndarray, np.ndarray]:
    """The log-likelihood of each position, and how likely each number of the prior is there; `more` copies hold +1.

    In single precision, which costs a score function nothing that matters and is several times as fast.
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
    """Some steps of expectation maximisation."""
    copies = len(strategy.means) - 1
    x = (positions.held[:, None] + np.arange(strategy.unknown + 1)).ravel()
    for _ in range(steps):
        likelihood, share = _posterior(strategy, positions, prior, 0)
        moments = [
            np.bincount(x, (share * factor[:, None]).ravel(), copies + 1)
            for factor in (
                np.ones(len(share), np.float32),
                positions.precision,
                positions.precision * positions.values,
                positions.precision * positions.values**2,
            )
        ]
        number, weight, square = (moments[i] + moments[i][::-1] for i in (0, 1, 3))
        first = moments[2] - moments[2][::-1]
        means = (first + _MEAN_PRIOR * strategy.means) / (weight + _MEAN_PRIOR)
        squares = np.maximum(square - 2 * means * first + means**2 * weight, 0)
        pooled = squares.sum() / number.sum()
        variances = np.maximum((squares + _VARIANCE_PRIOR * pooled) / (number + _VARIANCE_PRIOR), _FLOOR)
        log_likelihood = float(likelihood.sum(dtype=np.float64))
        strategy = CollusionStrategy(strategy.unknown, strategy.scale, means, variances, log_likelihood)
    return strategy
