"""What pirates who hold c copies make of them, weight by weight, simulated at the positions of a code.

The m weights of a position carry its bit under keyed signs, fair and independent, so the pirates see in each weight
one of two values and not which is which. What they put there depends on how many of them have which, and the sum over
the m weights has a known distribution, binomial where they or the signs leave it to chance. So a forgery of N weights
is drawn exactly, from V positions. Drift adds noise to every weight, which is Gaussian in the sum.
"""

from collections.abc import Callable

import numpy as np

from hf_fingerprint.errors import CodeError


LAYERS = 27
_Mix = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def _equal(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    return copies.mean(axis=0)


def _mean_of_random_signs(chance: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of m signs that are +1 with these probabilities."""
    return 2 * rng.binomial(weights, chance) / weights - 1


def _random_pick(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    return _mean_of_random_signs((copies > 0).mean(axis=0), weights, rng)


def _where_agreed(copies: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    return np.where((copies == copies[0]).all(axis=0), copies[0], otherwise)


def _one_extreme(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    """The lowest or the highest value is +1 or -1 by the weight's sign."""
    return _where_agreed(copies, _mean_of_random_signs(np.full(copies.shape[1], 0.5), weights, rng))


def _both_extremes(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    return _where_agreed(copies, np.zeros(copies.shape[1]))


def _median(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    return np.sign(copies.sum(axis=0))


def _minority(copies: np.ndarray, weights: int, rng: np.random.Generator) -> np.ndarray:
    return _where_agreed(copies, -np.sign(copies.sum(axis=0)))


_EQUAL_SHARES: dict[str, _Mix] = {
    "average": _equal,
    "block interleaving": _random_pick,
    "random pick": _random_pick,
    "minimum": _one_extreme,
    "maximum": _one_extreme,
    "min-max": _both_extremes,
    "median": _median,
    "random extreme": _one_extreme,
    "minority": _minority,
}
FORGERIES = ("weighted average", "layer interleaving", *_EQUAL_SHARES)


def forge(
    strategy: str, copies: np.ndarray, weights: int, drift: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A forgery's reading, in units of the mark's amplitude.

    Args:
        strategy (`str`): one of `FORGERIES`. A weighted average has shares from a Dirichlet distribution of parameter
            2; layers are 27, of log-normal sizes, each from one pirate; blocks are so small that each weight of a
            position comes from a pirate of its own. Extremes and votes are as in [`collude`].
        copies (`np.ndarray` of shape `(c, V)`): the pirates' codewords, -1 and +1.
        weights (`int`): m, the weights of a position.
        drift (`float`): standard deviation of the noise in each weight, in units of the mark's amplitude.
        rng (`np.random.Generator`): what is left to chance.

    Returns:
        `(reading, shares)`: the reading, shape `(V,)`, for a mass of 1, and how much of the forgery each pirate gave,
        shape `(c,)`.
    """
    count, length = copies.shape
    shares = np.full(count, 1 / count)
    if strategy == "weighted average":
        shares = rng.dirichlet(np.full(count, 2.0))
    elif strategy == "layer interleaving":
        sizes = rng.lognormal(size=LAYERS)
        contributors = np.resize(rng.permutation(count), LAYERS)
        shares = np.bincount(contributors, sizes / sizes.sum(), count)
    elif strategy not in _EQUAL_SHARES:
        raise CodeError(f"No forgery is called {strategy}: choose one of {', '.join(FORGERIES)}.")
    mix = _EQUAL_SHARES.get(strategy)
    forged = shares @ copies if mix is None else mix(copies, weights, rng)
    return forged + drift / np.sqrt(weights) * rng.standard_normal(length), shares
