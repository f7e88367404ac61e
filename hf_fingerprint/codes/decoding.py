"""From a reading to accusations: joint decoding in rounds, each accusation a theorem.

Round by round: project out what is common to all copies and what the recipients accused so far explain, score
everybody on the rest, accuse whoever the bound allows. Where that accuses nobody and the reading holds more than is
explained, what the pirates did is inferred, with the accused's codewords known, and everybody is scored by the
likelihood ratio. As long as no innocent has crossed, all of this depends on the reading and the pirates' codewords
alone, so with n recipients, R rounds and H score functions in each an innocent is accused with probability at most
`n R H p`, and a recipient is accused iff that is at most alpha.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.bounds import ChernoffBound
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.strategy import infer_strategy, log_likelihood_ratio, most_biased


MAX_ROUNDS = 10
CANDIDATES = 16384
_RIDGE = 1e-9
_EXPLAINED, _SLIGHT = 4.0, 0.01  # standard errors, and a share: within either a reading is explained by the accused
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
    basis, coefficients, _ = _fit(codebook, reading, mass, accused)
    return reading - coefficients @ (basis * mass)


def unexplained(codebook: Codebook, reading: np.ndarray, mass: np.ndarray, accused: np.ndarray) -> bool:
    """Whether a reading holds something else than the accused.

    Every copy carries the codes' mean. So its coefficient is the sum of the shares of all copies in an average, and
    where positions are so biased that copies mostly agree, of any mixture. If either is not the sum of the shares of
    the accused, somebody else has one, or the copies were not averaged.

    Args:
        codebook, reading, mass, accused: see [`residual_reading`].

    Returns:
        `bool`: whether they differ by more than 4 standard errors and by more than 1 %; of fair signs, which have no
        mean, never.
    """
    if not codebook.mean.any():
        return False
    basis, coefficients, gram = _fit(codebook, reading, mass, accused)
    shares = coefficients[1:].sum()
    residual = (reading - coefficients @ (basis * mass))[mass > 0]
    noise = float((residual**2 / mass[mass > 0]).mean())
    left = np.append(1.0, -np.ones(len(coefficients) - 1))
    error = math.sqrt(noise * float(left @ np.linalg.solve(gram, left)))
    agreed = most_biased(codebook)
    precision = float((mass * codebook.mean**2)[agreed].sum())
    total = float((reading * codebook.mean)[agreed].sum()) / precision if precision else 0.0
    slight = _SLIGHT * abs(total)
    return bool(
        abs(coefficients[0] - shares) > max(_EXPLAINED * error, slight)
        or abs(total - shares) * math.sqrt(precision)
        > max(_EXPLAINED * math.sqrt(noise), slight * math.sqrt(precision))
    )


def _fit(
    codebook: Codebook, reading: np.ndarray, mass: np.ndarray, accused: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares by the codes' mean and the accused, centred: `(basis, coefficients, gram)`."""
    mean = codebook.mean
    basis = np.concatenate([mean[None, :], 2.0 * accused - 1 - mean]) if len(accused) else mean[None, :]
    gram = (basis * mass) @ basis.T
    gram += _RIDGE * (1 + float(np.trace(gram)) / len(gram)) * np.eye(len(gram))
    return basis, np.linalg.solve(gram, basis @ reading), gram


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
    return decode_all(codebook, copy_keys, [(reading, mass)], alpha, max_rounds, advance)[0]


def decode_all(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    readings: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    advance: Callable[[int], None] | None = None,
) -> list[Decoding]:
    """[`decode`] for several suspects, with one pass over the codewords of many recipients; alpha is for each.

    Args:
        readings (sequence of pairs): `(reading, mass)` of each suspect.
    """
    n = len(copy_keys)
    banks = [_functions(codebook, *reading, packed=None) for reading in readings]
    candidates = [np.arange(n)] * len(readings)
    shown = [np.full(n, -np.inf) for _ in readings]
    packed = None
    if n > CANDIDATES:  # go on with those above a cut that depends on the reading and not on anybody's codeword
        screened = codebook.scores(copy_keys, np.concatenate(banks), advance)
        for i, (bank, own) in enumerate(zip(banks, np.split(screened, len(banks), axis=1), strict=True)):
            share = math.log(CANDIDATES / (n * len(bank)))
            cuts = [ChernoffBound(function, codebook.probability).threshold(share) for function in bank]
            candidates[i] = np.flatnonzero((own >= cuts).any(axis=1))
            shown[i] = own.max(axis=1)
    else:
        packed = codebook.packed(copy_keys, advance)
    return [
        _decode_among(
            codebook,
            *reading,
            bank,
            among,
            codebook.packed([copy_keys[int(i)] for i in among]) if packed is None else packed,
            scores,
            alpha,
            max_rounds,
        )
        for reading, bank, among, scores in zip(readings, banks, candidates, shown, strict=True)
    ]


def _decode_among(
    codebook: Codebook,
    reading: np.ndarray,
    mass: np.ndarray,
    functions: np.ndarray,
    candidates: np.ndarray,
    packed: np.ndarray,
    scores: np.ndarray,
    alpha: float,
    max_rounds: int,
) -> Decoding:
    """The rounds, among the candidates; `scores` has what the screening gave, and `functions` the first bank."""
    n = len(scores)
    log_bounds = np.zeros(n)
    if n == 0 or not np.any(reading):
        return Decoding((), np.zeros(n), log_bounds, math.inf, 0)
    judged = _Judge(codebook, packed, log_union(codebook, n, max_rounds), alpha)
    accused: list[int] = []
    threshold, rounds = math.inf, 0
    for rounds in range(1, max_rounds + 1):
        if accused:
            functions = _functions(codebook, reading, mass, packed[accused])
        crossed = judged.cross(functions, accused, first=rounds == 1)
        if rounds == 1:
            threshold = judged.threshold
        if not len(crossed):
            ratio = _ratio(codebook, reading, mass, packed[accused])
            crossed = crossed if ratio is None else judged.cross(ratio, accused)
        accused += crossed
        if not len(crossed) or len(accused) == len(packed):
            break
    scores[candidates], log_bounds[candidates] = judged.scores, judged.log_bounds
    return Decoding(tuple(int(candidates[i]) for i in accused), scores, log_bounds, threshold, rounds)


class _Judge:
    """Scores the candidates by one score function after another and keeps what proves most of each."""

    def __init__(self, codebook: Codebook, packed: np.ndarray, log_union: float, alpha: float):
        self._codebook = codebook
        self._packed = packed
        self._log_union = log_union
        self._log_alpha = math.log(alpha)
        self._target = self._log_alpha - log_union
        self._least = _HOPELESS * math.sqrt(-2 * self._target)
        self.scores = np.full(len(packed), -np.inf)
        self.log_bounds = np.zeros(len(packed))
        self.threshold = math.inf

    def cross(self, functions: np.ndarray, accused: list[int], first: bool = False) -> list[int]:
        """Who is to be accused by standardised functions, the most certain first, beside those who are."""
        exact = self._codebook.packed_scores(self._packed, functions)
        exact[accused] = -np.inf
        if not first and len(functions) > 1 and exact.max() < self._least:
            return []
        bounds = [ChernoffBound(function, self._codebook.probability) for function in functions]
        thresholds = np.array([bound.threshold(self._target) for bound in bounds])
        if first:
            self.threshold = float(thresholds.max())
        elif not (exact >= thresholds).any():
            return []
        proven = np.stack([b.log_p(exact[:, h], at=self._target) for h, b in enumerate(bounds)]) + self._log_union
        best, proven = proven.argmin(axis=0), np.minimum(proven.min(axis=0), 0.0)
        better = (proven < self.log_bounds) | first
        self.scores[better] = exact[np.flatnonzero(better), best[better]]
        self.log_bounds[better] = proven[better]
        crossed = np.flatnonzero(better & (proven <= self._log_alpha))
        return [int(i) for i in crossed[np.argsort(self.log_bounds[crossed], kind="stable")]]


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
    target = math.log(alpha) - log_union(codebook, recipients, MAX_ROUNDS)
    thresholds = [ChernoffBound(function, codebook.probability).threshold(target) for function in functions]
    best = int(np.argmax(scores - thresholds))
    return float(scores[best]), bool(scores[best] >= thresholds[best])


def _functions(codebook: Codebook, reading: np.ndarray, mass: np.ndarray, packed: np.ndarray | None) -> np.ndarray:
    """The bank of score functions once the accused, `packed` codewords, are projected out."""
    known = np.empty((0, codebook.length)) if packed is None else np.unpackbits(packed, axis=1)
    return codebook.standardise(codebook.bank(residual_reading(codebook, reading, mass, known)))


def _ratio(codebook: Codebook, reading: np.ndarray, mass: np.ndarray, packed: np.ndarray) -> np.ndarray | None:
    """The likelihood ratio for what the pirates are inferred to have done, if anybody is left to look for."""
    known = np.unpackbits(packed, axis=1)
    if not unexplained(codebook, reading, mass, known):
        return None
    held = known.sum(axis=0, dtype=np.intp)
    strategy = infer_strategy(codebook, reading, mass, held, len(known))
    if strategy is None:
        return None
    return codebook.standardise(log_likelihood_ratio(codebook, reading, mass, held, strategy)[None])


def log_union(codebook: Codebook, recipients: int, rounds: int) -> float:
    """The logarithm of how many scores the bound pays for."""
    return math.log(recipients * rounds * codebook.tests)
