"""From a reading to accusations: joint decoding in rounds, each accusation a theorem.

Round by round: project out what is common to all copies and what the recipients accused so far explain, score
everybody on the rest, accuse whoever the bound allows. Where that accuses nobody and the reading holds more than is
explained, what the pirates did is inferred, with the accused's codewords known, and everybody is scored by the
likelihood ratio. With n recipients, R rounds and H score functions in each, a recipient is accused iff his score by
one of them is at or above the threshold at which `n R H p` is alpha. Then any innocent is accused with probability at
most alpha:

Take an innocent j. His codeword is independent of the suspect and of all other codewords. Decode without him, through
all R rounds, whether or not anybody is left: that yields at most R H score functions, and with each its threshold, all
of them without a look at j's codeword. So he reaches any of these thresholds with probability at most `R H p`. With j
among the recipients nothing changes before he reaches one: a score function depends on the reading and on who is
accused already; a threshold depends on its function; the likelihood ratio comes in where nobody reached a threshold;
the cut of the screening depends on the reading. So j is accused with probability at most `R H p`, and any of up to n
innocents with n times that, whether or not another innocent was accused before. Scores, bounds and the order of
accusation are reported and decide nothing.

It rests on the keyed generator being pseudo-random, and is for suspects that were made without feedback from tracing.
Alpha is for one trace of one suspect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.codes.bounds import ChernoffBound, check_alpha
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.residual import is_unexplained, residual_signal
from hf_fingerprint.codes.signals import Signal, to_signal, to_unit_scale
from hf_fingerprint.codes.strategy import infer_strategy, log_likelihood_ratio
from hf_fingerprint.errors import CodeError
from hf_fingerprint.progress import Progress


MAX_ROUNDS = 10
CANDIDATES = 16384
MIN_EXACT_SCORE = 3.0  # scores from here on are told in double precision, whether or not they could accuse


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


def decode(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    extracted: np.ndarray,
    mass: np.ndarray,
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress | None = None,
    recipients: int | None = None,
) -> Decoding:
    """Accuses the recipients whose codewords are in a reading.

    Args:
        codebook ([`Codebook`]): the code of the base.
        copy_keys (sequence of `bytes`): one for each of the n recipients.
        extracted (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        alpha (`float`, *optional*, defaults to 1e-6): the probability that any innocent at all is accused, at most
            0.05.
        max_rounds (`int`, *optional*, defaults to 10): R, fixed beforehand since the bound pays for each round.
        progress (callable, *optional*): a [`Progress`].
        recipients (`int`, *optional*): n, how many recipients the bound pays for: those whose keys are given, by
            default, and never fewer.

    Returns:
        [`Decoding`]: the same whatever the unit of the reading or of the mass. Where nothing was read nobody is
        accused.

    Raises:
        [`CodeError`]: if the reading can't be decoded, see [`to_signal`], alpha is no level to accuse at, or there are
            more keys than recipients.
    """
    return decode_all(codebook, copy_keys, [(extracted, mass)], alpha, max_rounds, progress, recipients)[0]


def decode_all(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    extracted_pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress | None = None,
    recipients: int | None = None,
) -> list[Decoding]:
    """[`decode`] for several suspects, with one pass over the codewords of many recipients; alpha is for each.

    Args:
        extracted_pairs (sequence of pairs): `(reading, mass)` of each suspect.
    """
    n = len(copy_keys)
    check_alpha(alpha)
    union = log_union(codebook, n if recipients is None else recipients, max_rounds, least=n)
    signals = [to_signal(*extracted, codebook.length) for extracted in extracted_pairs]
    banks = [_standardized_functions(codebook, signal, packed=None) for signal in signals]
    candidates = [np.arange(n)] * len(signals)
    screened_scores = [np.full(n, -np.inf) for _ in signals]
    packed = None
    if n > CANDIDATES and banks:  # go on with those above a cut that depends on the reading, on nobody's codeword
        screened = codebook.scores(copy_keys, np.concatenate(banks), progress)
        for i, (score_functions, bank_scores) in enumerate(
            zip(banks, np.split(screened, len(banks), axis=1), strict=True)
        ):
            share = math.log(CANDIDATES / (n * len(score_functions)))
            cuts = [ChernoffBound(function, codebook.probability).threshold(share) for function in score_functions]
            candidates[i] = np.flatnonzero(
                (bank_scores >= cuts - codebook.screening_error(score_functions)).any(axis=1)
            )
            screened_scores[i] = bank_scores.max(axis=1)
    else:
        packed = codebook.packed(copy_keys, progress)
    return [
        _decode_candidates(
            codebook,
            signal,
            score_functions,
            candidate_rows,
            codebook.packed([copy_keys[int(i)] for i in candidate_rows]) if packed is None else packed,
            scores,
            union,
            alpha,
            max_rounds,
        )
        for signal, score_functions, candidate_rows, scores in zip(
            signals, banks, candidates, screened_scores, strict=True
        )
    ]


def _decode_candidates(
    codebook: Codebook,
    signal: Signal,
    functions: np.ndarray,
    candidates: np.ndarray,
    packed: np.ndarray,
    scores: np.ndarray,
    union: float,
    alpha: float,
    max_rounds: int,
) -> Decoding:
    """The rounds, among the candidates; `scores` has what the screening gave, and `functions` the first bank."""
    n = len(scores)
    log_bounds = np.zeros(n)
    if n == 0 or not np.any(signal.values):
        return Decoding((), np.zeros(n), log_bounds, math.inf, 0)
    decoder = Decoder(codebook, packed, union, alpha)
    accused: list[int] = []
    threshold, rounds = math.inf, 0
    for rounds in range(1, max_rounds + 1):
        known = packed[sorted(accused)]
        if accused:
            functions = _standardized_functions(codebook, signal, known)
        crossed = decoder.find_crossings(functions, accused, first=rounds == 1)
        if rounds == 1:
            threshold = decoder.threshold
        if not len(crossed):
            ratio = _likelihood_ratio(codebook, signal, known)
            crossed = crossed if ratio is None else decoder.find_crossings(ratio, accused)
        accused += crossed
        if not len(crossed) or len(accused) == len(packed):
            break
    scores[candidates], log_bounds[candidates] = decoder.scores, decoder.log_bounds
    return Decoding(tuple(int(candidates[i]) for i in accused), scores, log_bounds, threshold, rounds)


class Decoder:
    """Scores the candidates by one score function after another and keeps what proves most of each."""

    def __init__(self, codebook: Codebook, packed: np.ndarray, log_union: float, alpha: float):
        self._codebook = codebook
        self._packed = packed
        self._log_union = log_union
        self._log_alpha = math.log(alpha)
        self._target = self._log_alpha - log_union
        self.scores = np.full(len(packed), -np.inf)
        self.log_bounds = np.zeros(len(packed))
        self.threshold = math.inf

    def find_crossings(self, functions: np.ndarray, accused: list[int], first: bool = False) -> list[int]:
        """Who reaches a threshold of standardised functions, the most certain first, beside those who are accused."""
        bounds = [ChernoffBound(function, self._codebook.probability) for function in functions]
        thresholds = np.array([bound.threshold(self._target) for bound in bounds])
        scores = self._codebook.packed_scores(self._packed, functions, np.minimum(thresholds, MIN_EXACT_SCORE))
        scores[accused] = -np.inf
        reached = np.asarray((scores >= thresholds).any(axis=1))
        if first:
            self.threshold = float(thresholds.max())
        elif not reached.any():
            return []
        self._keep_best(scores, bounds, reached, first)
        crossed = np.flatnonzero(reached)
        return [int(i) for i in crossed[np.argsort(self.log_bounds[crossed], kind="stable")]]

    def _keep_best(self, scores: np.ndarray, bounds: list[ChernoffBound], reached: np.ndarray, first: bool) -> None:
        """Keeps what proves most; a bound is at most alpha for those who reached a threshold, and for nobody else."""
        proven = np.stack([b.log_p(scores[:, h], at=self._target) for h, b in enumerate(bounds)]) + self._log_union
        best, proven = proven.argmin(axis=0), np.minimum(proven.min(axis=0), 0.0)
        beyond = np.maximum(proven, np.nextafter(self._log_alpha, 0.0))
        proven = np.where(reached, np.minimum(proven, self._log_alpha), beyond)
        better = (proven < self.log_bounds) | first
        self.scores[better] = scores[np.flatnonzero(better), best[better]]
        self.log_bounds[better] = proven[better]


def prove_codeword(
    codebook: Codebook, packed: np.ndarray, extracted: np.ndarray, mass: np.ndarray, recipients: int, alpha: float
) -> tuple[float, bool]:
    """One known codeword's score, and whether the first round of [`decode`] would accuse it among n recipients.

    Args:
        codebook ([`Codebook`]): the code of the base.
        packed (`np.ndarray` of shape `(V / 8,)`): its bits.
        reading, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        recipients (`int`): n.
        alpha (`float`): the probability that any innocent at all is accused, at most 0.05.

    Returns:
        `(score, proven)`

    Raises:
        [`CodeError`]: as [`decode`] does.
    """
    check_alpha(alpha)
    target = math.log(alpha) - log_union(codebook, recipients, MAX_ROUNDS)
    signal = to_signal(extracted, mass, codebook.length)
    if not np.any(signal.values):
        return 0.0, False
    functions = _standardized_functions(codebook, signal, packed=None)
    scores = codebook.packed_scores(packed[None, :], functions)[0]
    thresholds = [ChernoffBound(function, codebook.probability).threshold(target) for function in functions]
    best = int(np.argmax(scores - thresholds))
    return float(scores[best]), bool(scores[best] >= thresholds[best])


def _standardized_functions(codebook: Codebook, signal: Signal, packed: np.ndarray | None) -> np.ndarray:
    """The bank of score functions once the accused, `packed` codewords, are projected out."""
    known = np.empty((0, codebook.length)) if packed is None else np.unpackbits(packed, axis=1)
    residual, _ = to_unit_scale(residual_signal(codebook, signal.values, signal.mass, known))
    return codebook.standardize(codebook.score_functions(residual))


def _likelihood_ratio(codebook: Codebook, signal: Signal, packed: np.ndarray) -> np.ndarray | None:
    """The likelihood ratio for what the pirates are inferred to have done, if anybody is left to look for."""
    known = np.unpackbits(packed, axis=1)
    if not is_unexplained(codebook, signal.values, signal.mass, known):
        return None
    held = known.sum(axis=0, dtype=np.intp)
    strategy = infer_strategy(codebook, signal.values, signal.mass, held, len(known))
    if strategy is None:
        return None
    return codebook.standardize(log_likelihood_ratio(codebook, signal.values, signal.mass, held, strategy)[None])


def log_union(codebook: Codebook, recipients: int, rounds: int, least: int = 1) -> float:
    """The logarithm of how many scores the bound pays for.

    Args:
        codebook ([`Codebook`]): the code.
        recipients (`int`): n.
        rounds (`int`): R.
        least (`int`, *optional*, defaults to 1): how many recipients are tested.

    Raises:
        [`CodeError`]: if fewer recipients or rounds are paid for than there are.
    """
    if recipients < least:
        raise CodeError(f"The bound can't pay for {recipients} recipients where {least} are tested: give all of them.")
    if rounds < 1:
        raise CodeError(f"The bound can't pay for {rounds} rounds of decoding: choose 1 or more.")
    return math.log(max(recipients, 1) * rounds * codebook.functions_per_round)
