"""Collusion strategies: what c colluders do to the values of one weight, and what that does to a position of the code.

The first functions take values of any kind, `(c, ...)`, and are what `attacks/mixing.py` does to real weights.

The m weights of a position carry its bit under keyed signs, fair and independent, so colluders see one of two values
in each weight and not which is which. In half of the weights they see the bits b, in half -b: a strategy f that
looks at values alone leaves `(f(b) - f(-b)) / 2` at the position ([`collude_at_positions`]). Where the choice or the
signs leave it to chance, the sum over the m weights is binomial, so a forgery of N weights is drawn exactly from V
positions ([`forge`]). Drift adds noise to every weight, which is Gaussian in the sum.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hf_fingerprint.choices import FORGERIES, wrong_choice
from hf_fingerprint.errors import CodeError


LAYERS = 27


def average(values: np.ndarray, shares: Sequence[float] | None = None) -> np.ndarray:
    """The mean, or in double precision the weighted sum by `shares`, one for each copy."""
    if shares is None:
        return values.mean(axis=0)
    mixed = values[0].astype(np.float64) * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        mixed += value.astype(np.float64) * share
    return mixed


def minimum(values: np.ndarray) -> np.ndarray:
    """The lowest value."""
    return values.min(axis=0)


def maximum(values: np.ndarray) -> np.ndarray:
    """The highest value."""
    return values.max(axis=0)


def min_max(values: np.ndarray) -> np.ndarray:
    """Half-way between the extremes, in double precision."""
    return (minimum(values).astype(np.float64) + maximum(values)) / 2


def median(values: np.ndarray) -> np.ndarray:
    """The median; of an even number of copies, the lower of the two in the middle."""
    middle = (len(values) - 1) // 2
    return np.partition(values, middle, axis=0)[middle]


def minority(values: np.ndarray) -> np.ndarray:
    """The extreme that is farther from the mean: where a weight has two values, the one that fewer copies hold."""
    low, high, mean = minimum(values), maximum(values), values.mean(axis=0, dtype=np.float64)
    return np.where(mean - low > high - mean, low, high)


def pick(values: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """Each value of the copy that `copy` names for it."""
    return np.take_along_axis(values, copy[None], axis=0)[0]


VALUE_STRATEGIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "average": average,
    "minimum": minimum,
    "maximum": maximum,
    "min-max": min_max,
    "median": median,
    "minority": minority,
}
POSITION_STRATEGIES = ("average", "min-max", "random pick", "median", "minority")


def collude_at_positions(strategy: str, codewords: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a strategy leaves at each position, as the mean over its weights.

    Args:
        strategy (`str`): one of `POSITION_STRATEGIES`; a random pick takes all weights of a position from one copy.
            Minimum, maximum and a random extreme have the mean of `"min-max"`.
        codewords (`np.ndarray` of shape `(c, V)`): the colluders' codewords, -1 and +1.
        rng (`np.random.Generator`): the source of random picks.

    Returns:
        `np.ndarray` of shape `(V,)`.
    """
    if strategy == "random pick":
        return pick(codewords, np.asarray(rng.integers(len(codewords), size=codewords.shape[1])))
    mix = VALUE_STRATEGIES[strategy]
    return (mix(codewords) - mix(-codewords)) / 2


def forge(
    strategy: str, codewords: np.ndarray, weights: int, drift: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the signal extracted from a forgery, in units of the mark's amplitude.

    Args:
        strategy (`str`): one of `FORGERIES`. A weighted average has Dirichlet(2) shares; layers are 27, of log-normal
            sizes, each from one colluder; of blocks, each weight may come from another. The rest: see [`collude`].
        codewords (`np.ndarray` of shape `(c, V)`): the colluders' codewords, -1 and +1.
        weights (`int`): m, the number of weights per position.
        drift (`float`): standard deviation of the noise in each weight, in units of the mark's amplitude.
        rng (`np.random.Generator`): the source of all random choices.

    Returns:
        `(extracted, shares)`: the extracted signal, `(V,)`, for a mass of 1, and each colluder's share, `(c,)`.

    Raises:
        [`CodeError`]: if there is no such strategy.
    """
    if strategy not in FORGERIES:
        raise CodeError(wrong_choice("strategy", strategy, FORGERIES))
    count, length = codewords.shape
    shares = np.full(count, 1 / count)
    if strategy == "weighted average":
        shares = rng.dirichlet(np.full(count, 2.0))
        forged = shares @ codewords
    elif strategy == "layer interleaving":
        sizes = rng.lognormal(size=LAYERS)
        shares = np.bincount(np.resize(rng.permutation(count), LAYERS), sizes / sizes.sum(), count)
        forged = shares @ codewords
    elif strategy in ("block interleaving", "random pick"):
        forged = _mean_of_random_signs((codewords > 0).mean(axis=0), weights, rng)
    elif strategy in ("minimum", "maximum", "random extreme"):  # -1 or +1 by the weight's sign where copies differ
        signs = _mean_of_random_signs(np.full(length, 0.5), weights, rng)
        forged = np.where((codewords == codewords[0]).all(axis=0), codewords[0], signs)
    else:
        forged = collude_at_positions(strategy, codewords, rng)
    return forged + drift / np.sqrt(weights) * rng.standard_normal(length), shares


def _mean_of_random_signs(probability: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of m signs that are +1 with these probabilities."""
    return 2 * rng.binomial(weights, probability) / weights - 1
