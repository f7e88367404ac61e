"""How many colluders a code withstands: by formula where there is one, by simulation where there is none.

Pirates who hold c copies choose, weight by weight, among the values they see. At one position all the weights carry
the same bit under keyed signs, so a strategy that looks at values (minimum, maximum) acts on half the weights one way
and on half the other, and a strategy that looks at how many agree (median, minority) acts on all alike. That makes
every strategy a function of the pirates' bits at a position, and a simulation of V positions is one of the whole
model.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.biased import FLOOR
from hf_fingerprint.codes.bounds import ChernoffBound, check_alpha
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.decoding import MAX_ROUNDS, decode, log_union


def _average(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values.mean(axis=0)


def _extreme(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (values.min(axis=0) + values.max(axis=0)) / 2


def _random_pick(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return values[rng.integers(len(values), size=values.shape[1]), np.arange(values.shape[1])]


def _median(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sign(values.sum(axis=0))


def _minority(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    total = values.sum(axis=0)
    return np.where(np.abs(total) == len(values), np.sign(total), -np.sign(total))


STRATEGIES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "average": _average,
    "minimum or maximum": _extreme,
    "random pick": _random_pick,
    "median": _median,
    "minority": _minority,
}


@dataclass(frozen=True)
class CertifiedCoalition:
    """The coalition that a code withstands, and how that is known.

    Attributes:
        size (`int`): every colluder of a coalition up to this size is accused; 0 if not even a single leaker is.
        method (`str`): what was computed, in words.
    """

    size: int
    method: str


def accusation_threshold(codebook: Codebook, recipients: int, alpha: float) -> float:
    """The score that accuses in the first round, for a reading of independent standard normal positions.

    A stand-in for a suspect that is not known yet: with the suspect in hand [`decode`] computes it exactly.

    Raises:
        [`CodeError`]: if alpha is no level to accuse at.
    """
    check_alpha(alpha)
    extracted = np.random.default_rng(0).standard_normal(codebook.length)
    functions = codebook.standardize(codebook.score_functions(extracted))
    level = math.log(alpha) - log_union(codebook, recipients, MAX_ROUNDS)
    return max(ChernoffBound(function, codebook.probability).threshold(level) for function in functions)


def expected_score(codebook: Codebook, colluders: int, noise: float) -> float:
    """The mean score of each of c colluders who average their copies, by formula.

    With `h = y' / e`, where `e_i = var_i / c + noise^2` is the energy that y', the centred average plus noise, has at
    a position: `sum_i (var_i / e_i) / c / sqrt(sum_i var_i / e_i)`; with little noise e is taken no smaller than
    `(var_i + 0.05) / c`, as [`BiasedCodebook.score_functions`] does.

    Args:
        codebook ([`Codebook`]): the code.
        colluders (`int`): c.
        noise (`float`): standard deviation of the reading at one position, in units of the mark's amplitude.
    """
    energy = codebook.variance / colluders + noise**2
    weight = codebook.variance / (codebook.variance / colluders + max(noise**2, FLOOR / colluders))
    norm = np.sqrt((energy * weight**2 / codebook.variance).sum())
    return float(weight.sum() / colluders / norm)


def coalition_by_formula(codebook: Codebook, recipients: int, alpha: float, noise: float) -> CertifiedCoalition:
    """The largest averaging coalition whose expected score clears the threshold by 3 standard deviations."""
    needed = accusation_threshold(codebook, recipients, alpha) + 3
    size = 0
    while size < recipients and expected_score(codebook, size + 1, noise) >= needed:
        size += 1
    return CertifiedCoalition(
        size, f"formula for averaging, noise {noise:.2g} per position, 3 standard deviations kept"
    )


def coalition_by_simulation(
    codebook: Codebook, recipients: int, alpha: float, noise: float, trials: int = 3, limit: int = 64
) -> CertifiedCoalition:
    """The largest coalition all of whose members are accused in every trial under every strategy, by bisection.

    Args:
        codebook ([`Codebook`]): the code.
        recipients (`int`): n, how many recipients the bound has to cover.
        alpha (`float`): the bound on accusing any innocent.
        noise (`float`): standard deviation of the reading at one position, in units of the mark's amplitude.
        trials (`int`, *optional*, defaults to 3): simulations for each strategy and size.
        limit (`int`, *optional*, defaults to 64): the largest size tried.
    """
    low, high = 0, min(limit, recipients) + 1
    while high - low > 1:
        size = (low + high) // 2
        if all(
            count_accused_in_simulation(codebook, size, strategy, recipients, alpha, noise, trial) == size
            for strategy in STRATEGIES
            for trial in range(trials)
        ):
            low = size
        else:
            high = size
    return CertifiedCoalition(
        low,
        f"simulation, {trials} trials of each of {', '.join(STRATEGIES)}, noise {noise:.2g} per position, all "
        f"colluders accused",
    )


def count_accused_in_simulation(
    codebook: Codebook, colluders: int, strategy: str, recipients: int, alpha: float, noise: float, trial: int
) -> int:
    """How many of c colluders are accused in one simulated collusion, the bound paying for all n recipients."""
    keys = [hashlib.sha256(f"simulated {trial} {i}".encode()).digest() for i in range(colluders)]
    rng = np.random.default_rng([trial, colluders])
    values = 2.0 * np.unpackbits(codebook.packed(keys), axis=1) - 1
    extracted = STRATEGIES[strategy](values, rng) + noise * rng.standard_normal(codebook.length)
    return len(decode(codebook, keys, extracted, np.ones(codebook.length), alpha, recipients=recipients).accused)
