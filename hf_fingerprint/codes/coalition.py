"""How many colluders a code withstands: by formula for averages, by simulation for other strategies.

Every strategy is a function of the colluders' bits at a position ([`collude_at_positions`]), so a simulation of V
positions is one of the whole model.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.biased import REGULARIZATION
from hf_fingerprint.codes.bounds import ChernoffBound, check_alpha
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.collusion import POSITION_STRATEGIES, collude_at_positions
from hf_fingerprint.codes.decoding import MAX_ROUNDS, decode, log_union


@dataclass(frozen=True)
class CertifiedCoalition:
    """The coalition that a code withstands, and how that is known.

    Attributes:
        size (`int`): every colluder of a coalition up to this size is accused; 0 if not even a single copy is.
        method (`str`): how it was computed, for a reader.
    """

    size: int
    method: str


def accusation_threshold(codebook: Codebook, recipients: int, alpha: float) -> float:
    """The score that accuses in the first round, for a signal of independent standard normal positions.

    It is an estimate before there is a suspect; [`decode`] computes the threshold from the suspect's signal.

    Raises:
        [`CodeError`]: if alpha isn't above 0 and at most 0.05.
    """
    check_alpha(alpha)
    extracted = np.random.default_rng(0).standard_normal(codebook.length)
    functions = codebook.standardize(codebook.score_functions(extracted))
    level = math.log(alpha) - log_union(codebook, recipients, MAX_ROUNDS)
    return max(ChernoffBound(function, codebook.probability).threshold(level) for function in functions)


def expected_score(codebook: Codebook, colluders: int, noise: float) -> float:
    """The mean score of each of c colluders who average their copies, by formula.

    With `h = y' / e`, where `e_i = var_i / c + noise^2` is the energy of y', the centered average plus noise, at a
    position: `sum_i (var_i / e_i) / c / sqrt(sum_i var_i / e_i)`. With little noise e is at least
    `(var_i + 0.05) / c`, as in [`BiasedCodebook.score_functions`].

    Args:
        codebook ([`Codebook`]): the code.
        colluders (`int`): c.
        noise (`float`): standard deviation of the signal at one position, in units of the mark's amplitude.
    """
    energy = codebook.variance / colluders + noise**2
    weight = codebook.variance / (codebook.variance / colluders + max(noise**2, REGULARIZATION / colluders))
    norm = np.sqrt((energy * weight**2 / codebook.variance).sum())
    return float(weight.sum() / colluders / norm)


def coalition_by_formula(codebook: Codebook, recipients: int, alpha: float, noise: float) -> CertifiedCoalition:
    """The largest averaging coalition whose expected score is 3 standard deviations above the threshold."""
    needed = accusation_threshold(codebook, recipients, alpha) + 3
    size = 0
    while size < recipients and expected_score(codebook, size + 1, noise) >= needed:
        size += 1
    method = f"formula for averaging, noise {noise:.2g} per position, 3 standard deviations kept"
    return CertifiedCoalition(size, method)


def coalition_by_simulation(
    codebook: Codebook, recipients: int, alpha: float, noise: float, trials: int = 3, limit: int = 64
) -> CertifiedCoalition:
    """The largest coalition whose members are all accused in every trial of every strategy, by bisection.

    Args:
        codebook, noise: see [`expected_score`].
        recipients (`int`): n, how many recipients the bound covers.
        alpha (`float`): the bound on the probability of accusing any innocent.
        trials (`int`, *optional*, defaults to 3): simulations for each strategy and size.
        limit (`int`, *optional*, defaults to 64): the largest size tried.
    """
    low, high = 0, min(limit, recipients) + 1
    strategies = sorted(POSITION_STRATEGIES, key=lambda strategy: strategy != "random pick")  # few withstand more
    while high - low > 1:
        size = (low + high) // 2
        withstands = all(
            count_accused_in_simulation(codebook, size, strategy, recipients, alpha, noise, trial) == size
            for strategy in strategies
            for trial in range(trials)
        )
        low, high = (size, high) if withstands else (low, size)
    tried = f"{trials} trials of each of {', '.join(POSITION_STRATEGIES)}"
    return CertifiedCoalition(low, f"simulation, {tried}, noise {noise:.2g} per position, all colluders accused")


def count_accused_in_simulation(
    codebook: Codebook, colluders: int, strategy: str, recipients: int, alpha: float, noise: float, trial: int
) -> int:
    """How many of c colluders are accused in one simulated collusion, with a bound over all n recipients."""
    keys = [hashlib.sha256(f"simulated {trial} {i}".encode()).digest() for i in range(colluders)]
    rng = np.random.default_rng([trial, colluders])
    codewords = 2.0 * np.unpackbits(codebook.packed(keys), axis=1) - 1
    extracted = collude_at_positions(strategy, codewords, rng) + noise * rng.standard_normal(codebook.length)
    return len(decode(codebook, keys, extracted, np.ones(codebook.length), alpha, recipients=recipients).accused)
