"""Decodes an extracted signal into accusations: joint decoding in rounds, with a proven bound for each accusation.

Each round projects out what all copies share and what the recipients accused so far explain, scores all recipients on
the rest, and accuses those whom the bound allows. If a round accuses nobody and the signal holds more than the
accused explain, the colluders' strategy is inferred, given the accused's codewords, and all recipients are scored by
the likelihood ratio. With n recipients, R rounds and H score functions in each, a recipient is accused iff one of the
scores reaches the threshold at which `n R H p` is alpha. Then any innocent is accused with probability at most alpha.
Of several readings of one suspect, each contributes its score functions to every round, and H counts them all.

Take an innocent j. Their codeword is independent of the suspect and of all other codewords. Decode without j, through
all R rounds, even if nobody is left to accuse: this yields at most R H score functions and their thresholds, none of
which depends on j's codeword. So j reaches any of these thresholds with probability at most `R H p`. With j among the
recipients nothing changes until j reaches one: a score function depends on the signal and on who is accused already;
a threshold depends on its function; the likelihood ratio is used where nobody reached a threshold; the cut of the
screening depends on the signal. So j is accused with probability at most `R H p`, and any of up to n innocents with n
times that, whether or not another was accused before. Reported scores, bounds and the order decide nothing.

The proof assumes that the keyed generator is pseudo-random and that the suspect was made without feedback from
tracing. Alpha is for one trace of one suspect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hf_fingerprint.codes.bounds import ChernoffBound, check_alpha
from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.round_functions import bank_functions, ratio_function, signals_of, standardized_functions
from hf_fingerprint.codes.signals import Signal, to_signal
from hf_fingerprint.errors import CodeError
from hf_fingerprint.progress import Progress


MAX_ROUNDS = 10
CANDIDATES = 16384
MIN_EXACT_SCORE = 3.0  # scores from here on are reported in double precision, even if they can't accuse


@dataclass(frozen=True)
class Decoding:
    """The scores of n recipients, and the accused among them.

    Attributes:
        accused (`tuple[int, ...]`): indices of the accused, in the order of accusation.
        scores (`np.ndarray` of shape `(n,)`): the score that proves most, in standard deviations of an innocent's.
        log_bounds (`np.ndarray` of shape `(n,)`): natural logarithm of the bound on the probability that any innocent
            of the n would score so high in any round; at most 0.
        threshold (`float`): the score from which the first round accuses: the highest over its score functions.
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
    """Accuses the recipients whose codewords are in an extracted signal.

    Args:
        codebook ([`Codebook`]): the code of the base.
        copy_keys (sequence of `bytes`): one for each of the n recipients.
        extracted, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        alpha (`float`, *optional*, defaults to 1e-6): the bound on accusing any innocent, at most 0.05.
        max_rounds (`int`, *optional*, defaults to 10): R; the bound pays for each round, run or not.
        progress (callable, *optional*): a [`Progress`].
        recipients (`int`, *optional*): n, how many recipients the bound pays for; at least, and by default, the keys.

    Returns:
        [`Decoding`]: it doesn't depend on the unit of the signal or of the mass. An empty signal accuses nobody.

    Raises:
        [`CodeError`]: if the signal can't be decoded, see [`to_signal`], alpha is out of range, or n is too low.
    """
    return decode_readings(codebook, copy_keys, [(extracted, mass)], alpha, max_rounds, progress, recipients)


def decode_all(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    extracted_pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress | None = None,
    recipients: int | None = None,
) -> list[Decoding]:
    """[`decode`] for several suspects in one pass over the codewords; alpha is for each suspect.

    Args:
        extracted_pairs (sequence of pairs): `(extracted, mass)` of each suspect.
    """
    suspects = [[pair] for pair in extracted_pairs]
    return _decode_suspects(codebook, copy_keys, suspects, alpha, max_rounds, progress, recipients)


def decode_readings(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    readings: Sequence[tuple[np.ndarray, np.ndarray]],
    alpha: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
    progress: Progress | None = None,
    recipients: int | None = None,
) -> Decoding:
    """[`decode`] for several readings of one suspect: alpha is for all of them together.

    Args:
        readings (sequence of pairs): `(extracted, mass)` of each reading, at least one. How many there are, and what
            each holds, must not depend on a codeword.
    """
    if not readings:
        raise CodeError("There is no reading to decode: give at least one.")
    return _decode_suspects(codebook, copy_keys, [readings], alpha, max_rounds, progress, recipients)[0]


def _decode_suspects(
    codebook: Codebook,
    copy_keys: Sequence[bytes],
    suspects: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    alpha: float,
    max_rounds: int,
    progress: Progress | None,
    recipients: int | None,
) -> list[Decoding]:
    """Decodes suspects of equally many readings in one pass over the codewords."""
    n = len(copy_keys)
    check_alpha(alpha)
    count = max(map(len, suspects), default=1)
    union = log_union(codebook, n if recipients is None else recipients, max_rounds, least=n, readings=count)
    signals = [signals_of(codebook, readings) for readings in suspects]
    banks = [bank_functions(codebook, each, packed=None) for each in signals]
    run = partial(_decode_candidates, codebook, union=union, alpha=alpha, max_rounds=max_rounds)
    if n <= CANDIDATES or not banks:
        packed = codebook.packed(copy_keys, progress)
        return [run(*each, np.arange(n), packed, np.full(n, -np.inf)) for each in zip(signals, banks, strict=True)]
    ends = np.cumsum([len(functions) for functions in banks])[:-1]
    screened = np.split(codebook.scores(copy_keys, np.concatenate(banks), progress), ends, axis=1)
    decoded = []
    for readings, functions, scores in zip(signals, banks, screened, strict=True):
        # keep those above a cut that depends on the signal alone, not on codewords
        share = math.log(CANDIDATES / (n * len(functions)))
        cuts = [ChernoffBound(function, codebook.probability).threshold(share) for function in functions]
        candidates = np.flatnonzero((scores >= cuts - codebook.screening_error(functions)).any(axis=1))
        packed = codebook.packed([copy_keys[int(i)] for i in candidates])
        decoded.append(run(readings, functions, candidates, packed, scores.max(axis=1)))
    return decoded


def _decode_candidates(
    codebook: Codebook,
    readings: Sequence[Signal],
    functions: np.ndarray,
    candidates: np.ndarray,
    packed: np.ndarray,
    scores: np.ndarray,
    union: float,
    alpha: float,
    max_rounds: int,
) -> Decoding:
    """Runs the rounds among the candidates, from the scores of the screening and the first round's functions."""
    n = len(scores)
    log_bounds = np.zeros(n)
    if n == 0 or not np.any(readings[0].values):
        return Decoding((), np.zeros(n), log_bounds, math.inf, 0)
    decoder = Decoder(codebook, packed, union, alpha)
    accused: list[int] = []
    threshold, rounds = math.inf, 0
    for rounds in range(1, max_rounds + 1):
        known = packed[sorted(accused)]
        if accused:
            functions = bank_functions(codebook, readings, known)
        crossed = decoder.find_crossings(functions, accused, first=rounds == 1)
        if rounds == 1:
            threshold = decoder.threshold
        if not len(crossed):
            ratios = [ratio_function(codebook, signal, known) for signal in readings]
            found = [ratio for ratio in ratios if ratio is not None]
            crossed = decoder.find_crossings(np.concatenate(found), accused) if found else crossed
        accused += crossed
        if not len(crossed) or len(accused) == len(packed):
            break
    scores[candidates], log_bounds[candidates] = decoder.scores, decoder.log_bounds
    return Decoding(tuple(int(candidates[i]) for i in accused), scores, log_bounds, threshold, rounds)


class Decoder:
    """Scores the candidates by one score function after another and keeps each one's strongest score."""

    def __init__(self, codebook: Codebook, packed: np.ndarray, log_union: float, alpha: float):
        self._codebook, self._packed, self._log_union = codebook, packed, log_union
        self._log_alpha = math.log(alpha)
        self._target = self._log_alpha - log_union
        self.scores = np.full(len(packed), -np.inf)
        self.log_bounds = np.zeros(len(packed))
        self.threshold = math.inf

    def find_crossings(self, functions: np.ndarray, accused: list[int], first: bool = False) -> list[int]:
        """The candidates, other than the accused, who reach a threshold of standardized functions, surest first."""
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
        """Keeps the strongest scores. A bound is at most alpha only for those who reached a threshold."""
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
    """The score of one known codeword, and whether the first round of [`decode`] would accuse it among n recipients.

    Args:
        codebook ([`Codebook`]): the code of the base.
        packed (`np.ndarray` of shape `(V / 8,)`): the codeword's bits.
        extracted, mass (`np.ndarray` of shape `(V,)`): see [`residual_signal`].
        recipients (`int`): n.
        alpha (`float`): the bound on the probability that any innocent is accused, at most 0.05.

    Returns:
        `(score, proven)`

    Raises:
        [`CodeError`]: as in [`decode`].
    """
    check_alpha(alpha)
    target = math.log(alpha) - log_union(codebook, recipients, MAX_ROUNDS)
    signal = to_signal(extracted, mass, codebook.length)
    if not np.any(signal.values):
        return 0.0, False
    functions = standardized_functions(codebook, signal, packed=None)
    scores = codebook.packed_scores(packed[None, :], functions)[0]
    thresholds = [ChernoffBound(function, codebook.probability).threshold(target) for function in functions]
    best = int(np.argmax(scores - thresholds))
    return float(scores[best]), bool(scores[best] >= thresholds[best])


def log_union(codebook: Codebook, recipients: int, rounds: int, least: int = 1, readings: int = 1) -> float:
    """The logarithm of `n R H`, the number of scores that the bound pays for, of which `least` recipients are tested.

    H counts the score functions of all `readings` of a suspect.

    Raises:
        [`CodeError`]: if there are fewer recipients than are tested, or fewer rounds than 1.
    """
    if recipients < least:
        raise CodeError(f"`recipients` must be at least {least}, the number that is tested, got {recipients}.")
    if rounds < 1:
        raise CodeError(f"`max_rounds` must be at least 1, got {rounds}.")
    return math.log(max(recipients, 1) * rounds * codebook.functions_per_round * readings)
