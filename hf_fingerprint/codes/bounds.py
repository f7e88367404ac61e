"""Bounds on the probability of an innocent's score: exact tail bounds, no Gaussian approximation.

An innocent's codeword is independent of the suspect and of everything computed from it, because the colluders never
saw it. So given the score function h, computed from the suspect alone, the score `S = sum_i h_i (b_i - mu_i)` is a
sum of independent terms with known distributions, whatever was done to the suspect without feedback from tracing.
Chernoff's inequality bounds its tail:

    P(S >= t) <= exp(K(s) - s t)   for every s > 0,   K(s) = sum_i log E exp(s h_i (b_i - mu_i))

The proof assumes that the keyed generator of the codewords is pseudo-random. The level is for one trace.

H. Chernoff, Ann. Math. Statist. 23 (1952); W. Hoeffding, JASA 58 (1963), theorem 2, for fair signs.
"""

import math

import numpy as np

from hf_fingerprint.errors import CodeError


MAX_ALPHA = 0.05
GRID = 10
_LARGE = 50.0
_MIN_EXPONENT, _MAX_EXPONENT, _TOLERANCE, _STEPS = 0.1, 1e4, 1e-3, 60


def check_alpha(alpha: float) -> None:
    """Checks the bound on the probability of a false accusation; called wherever anybody is accused.

    Raises:
        [`CodeError`]: if it isn't a number above 0 and at most 0.05.
    """
    if not 0 < alpha <= MAX_ALPHA:  # also refuses NaN
        raise CodeError(f"`alpha` must be above 0 and at most {MAX_ALPHA}, got {alpha}.")


def hoeffding_log_p(score: np.ndarray | float) -> np.ndarray:
    """The bound `-score^2 / 2` on `log P(S >= score)` for standardized fair signs; 0 for scores below 0."""
    return -np.square(np.maximum(score, 0.0)) / 2


class ChernoffBound:
    """The Chernoff bound of one score function under one code.

    Args:
        function (`np.ndarray` of shape `(V,)`): h, standardized so that the score has variance 1.
        probability (`np.ndarray` of shape `(V,)`): `P(b_i = +1)`.
    """

    def __init__(self, function: np.ndarray, probability: np.ndarray):
        used = function != 0
        self._up = np.where(function > 0, probability, 1 - probability)[used]
        self._step = 2 * np.abs(function[used])
        self._below = self._step * self._up  # |h| (1 + mu), where mu takes the sign of h
        self._best: dict[float, tuple[float, float]] = {}

    def cumulant(self, s: float) -> float:
        """`K(s)`, for `s >= 0`. Terms beyond exp(50) are replaced by larger ones, so the bound holds."""
        x = s * self._step
        inner = np.minimum(x, _LARGE)
        return float(np.sum(np.log1p(self._up * np.expm1(inner)) + (x - inner)) - s * self._below.sum())

    def threshold(self, log_p: float) -> float:
        """The smallest score that is proven to have `log P(S >= score) <= log_p` (natural logarithm)."""
        return self._optimum(log_p)[0]

    def log_p(self, scores: np.ndarray, at: float) -> np.ndarray:
        """Bounds on `log P(S >= score)` for each score; 0 where nothing better than certainty is proven.

        Args:
            scores (`np.ndarray` of shape `(n,)`): standardized scores.
            at (`float`): the level of [`threshold`] at which the bound is exact; elsewhere it is slightly looser.

        Returns:
            `np.ndarray` of shape `(n,)`.
        """
        if not len(scores) or not len(self._step):
            return np.zeros(len(scores))
        highest = max(8.0, 2 * float(np.max(scores)))
        grid = np.append(np.geomspace(0.5, highest, GRID), self._optimum(at)[1])
        best = hoeffding_log_p(scores) if np.all(self._up == 0.5) else np.zeros(len(scores))
        for s in grid:
            np.minimum(best, self.cumulant(s) - s * scores, out=best)
        return best

    def _optimum(self, log_p: float) -> tuple[float, float]:
        """The threshold, which is the minimum of `(K(s) - log_p) / s`, and the s that attains it."""
        if not len(self._step):
            return math.inf, 1.0
        if log_p not in self._best:
            s = self._exponent(log_p)
            self._best[log_p] = (self.cumulant(s) - log_p) / s, s
        return self._best[log_p]

    def _exponent(self, log_p: float) -> float:
        """The s at which `(K(s) - log_p) / s` is least, by Newton's method on the zero of `s K'(s) - K(s) + log_p`.

        That grows with s, since K is convex. Any other s would prove a higher threshold, but a true one.
        """
        low, high = _MIN_EXPONENT, _MAX_EXPONENT
        s = min(max(math.sqrt(-2 * log_p), low), high)  # of a normal score
        for _ in range(_STEPS):
            slope, curvature = self._derivatives(s)
            excess = s * slope - self.cumulant(s) + log_p
            low, high = (low, s) if excess > 0 else (s, high)
            step = -excess / (s**2 * curvature) if curvature > 0 else math.inf  # in log s
            following = s * math.exp(step) if abs(step) < 1 else 0.0
            if not low < following < high:
                following = math.sqrt(low * high)
            if abs(math.log(following / s)) < _TOLERANCE:
                return following
            s = following
        return s

    def _derivatives(self, s: float) -> tuple[float, float]:
        """`K'(s)` and `K''(s)`."""
        growth = self._up * np.exp(np.minimum(s * self._step, _LARGE))
        tilted = growth / (growth + 1 - self._up)
        slope = float((self._step * tilted).sum() - self._below.sum())
        return slope, float((np.square(self._step) * tilted * (1 - tilted)).sum())
