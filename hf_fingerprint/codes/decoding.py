"""From a reading to accusations: joint decoding in rounds, each accusation a theorem.

Round by round: project out what is common to all copies and what the recipients accused so far explain, score
everybody on the rest, accuse whoever the bound allows. As long as no innocent has crossed, what is projected out
depends on the pirates' codewords alone, so with n recipients, R rounds and a bank of H score functions an innocent is
accused with probability at most `n R H p`, and a recipient is accused iff that is at most alpha.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.bounds import ChernoffBound
from hf_fingerprint.codes.codebook import Codebook


MAX_ROUNDS = 10
CANDIDATES = 16384
_RIDGE = 1e-9
_HOPELESS = 0.6  # of the Gaussian threshold: below it nobody is accused, and no bound worked out after the first round


@dataclass(frozen=True)
class Decoding:
    """What the scores of n recipients say.

    Attributes:
        accused (`tuple[int, ...]`): indices of the accused, in the order of accusation.
        scores (`np.ndarray` of shape `(n,)`): the score that proves most, in standard deviations of an innocent's.
        log_bounds (`np.ndarray` of shape `(n,)`): natural logarithm of the bound on the probability that any innocent
            of the n would score so high in any round; at most 0.
        threshold (`float`): the score beyond which the first round accuses (of the bank, the highest).
        rounds (`int`): rounds run.
    """

    accused: tuple[int, ...]
    scores: np.ndarray
    log_bounds: np.ndarray
    threshold: float
    rounds: int


def residual_reading(codebook: Codebook, reading: np.ndarray, mass: np.ndarray, accused: np.ndarray) -> np.ndarray:
    """The reading less its least-squares fit by the codes' mean and the accused codewords.

    Args:
        codebook ([`Codebook`]): the code.
        reading (`np.ndarray` of shape `(V,)`): weighted sums; a mark of strength 1 reads as `mass * b`.
        mass (`np.ndarray` of shape `(V,)`): the weight behind each position, inverse to the variance of `reading /
            mass`.
        accused (`np.ndarray` of shape `(k, V)`): their bits.

    Returns:
        `np.ndarray` of shape `(V,)`: `y - mass * (beta mu + sum_a gamma_a (b_a - mu))`.
    """
    mean = codebook.mean
    basis = np.concatenate([mean[None, :], 2.0 * accused - 1 - mean]) if len(accused) else mean[None, :]
    weighted = basis * mass
    gram = weighted @ basis.T
    ridge = _RIDGE * (1 + float(np.trace(gram)) / len(gram))
    coefficients = np.linalg.solve(gram + ridge * np.eye(len(gram)), basis @ reading)
    return reading - coefficients @ weighted


def decode(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    reading: np.ndarray,
    mass: np.ndarray,
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    advance: Callable[[int], None] | None = None,
) -> Decoding:
    """Accuses the recipients whose codewords are in a reading.

    Args:
        codebook ([`Codebook`]): the code of the base.
        copy_keys (sequence of `bytes`): one for each of the n recipients.
        reading (`np.ndarray` of shape `(V,)`): see [`residual_reading`].
        mass (`np.ndarray` of shape `(V,)`): see [`residual_reading`].
        alpha (`float`, *optional*, defaults to 1e-6): the probability that any innocent at all is accused.
        max_rounds (`int`, *optional*, defaults to 10): R, fixed beforehand since the bound pays for each round.
        advance (callable, *optional*): told the number of recipients after each block of the first round.

    Returns:
        [`Decoding`]
    """
    n = len(copy_keys)
    scores, log_bounds = np.full(n, -np.inf), np.zeros(n)
    if n == 0 or not np.any(reading):
        return Decoding((), np.zeros(n), log_bounds, math.inf, 0)
    functions = _functions(codebook, reading, mass, packed=None)
    candidates = np.arange(n)
    if n > CANDIDATES:  # go on with those above a cut that depends on the reading and not on anybody's codeword
        screened = codebook.scores(copy_keys, functions, advance)
        share = math.log(CANDIDATES / (n * len(functions)))
        cuts = [ChernoffBound(function, codebook.probability).threshold(share) for function in functions]
        candidates = np.flatnonzero((screened >= cuts).any(axis=1))
        scores = screened.max(axis=1)
    packed = codebook.packed([copy_keys[int(i)] for i in candidates], advance if n <= CANDIDATES else None)
    log_union = math.log(n * max_rounds * len(functions))
    target = math.log(alpha) - log_union
    least = _HOPELESS * math.sqrt(-2 * target)
    accused: list[int] = []
    threshold, rounds = math.inf, 0
    for rounds in range(1, max_rounds + 1):
        places = np.searchsorted(candidates, accused)
        if accused:
            functions = _functions(codebook, reading, mass, packed[places])
        exact = codebook.packed_scores(packed, functions)
        exact[places] = -np.inf
        if rounds > 1 and exact.max() < least:
            break
        bounds = [ChernoffBound(function, codebook.probability) for function in functions]
        thresholds = np.array([bound.threshold(target) for bound in bounds])
        if rounds == 1:
            threshold = float(thresholds.max())
        elif not (exact >= thresholds).any():
            break
        proven = np.stack([b.log_p(exact[:, h], at=target) for h, b in enumerate(bounds)]) + log_union
        best, proven = proven.argmin(axis=0), np.minimum(proven.min(axis=0), 0.0)
        better = (proven < log_bounds[candidates]) | (rounds == 1)
        scores[candidates[better]] = exact[np.flatnonzero(better), best[better]]
        log_bounds[candidates[better]] = proven[better]
        crossed = candidates[better & (proven <= math.log(alpha)) & (exact.max(axis=1) >= least)]
        if not len(crossed):
            break
        accused += [int(i) for i in crossed[np.argsort(log_bounds[crossed], kind="stable")]]
    return Decoding(tuple(accused), scores, log_bounds, threshold, rounds)


def prove_codeword(
    codebook: Codebook, packed: np.ndarray, reading: np.ndarray, mass: np.ndarray, recipients: int, alpha: float
) -> tuple[float, bool]:
    """One known codeword's score, and whether the first round of [`decode`] would accuse it among n recipients.

    Args:
        codebook ([`Codebook`]): the code of the base.
        packed (`np.ndarray` of shape `(V / 8,)`): its bits.
        reading, mass (`np.ndarray` of shape `(V,)`): see [`residual_reading`].
        recipients (`int`): n.
        alpha (`float`): the probability that any innocent at all is accused.
    """
    if not np.any(reading):
        return 0.0, False
    functions = _functions(codebook, reading, mass, packed=None)
    scores = codebook.packed_scores(packed[None, :], functions)[0]
    target = math.log(alpha) - math.log(recipients * MAX_ROUNDS * len(functions))
    thresholds = [ChernoffBound(function, codebook.probability).threshold(target) for function in functions]
    best = int(np.argmax(scores - thresholds))
    return float(scores[best]), bool(scores[best] >= thresholds[best])


def _functions(codebook: Codebook, reading: np.ndarray, mass: np.ndarray, packed: np.ndarray | None) -> np.ndarray:
    """The bank of score functions once the accused, `packed` codewords, are projected out."""
    known = np.empty((0, codebook.length)) if packed is None else np.unpackbits(packed, axis=1)
    return codebook.standardise(codebook.bank(residual_reading(codebook, reading, mass, known)))
