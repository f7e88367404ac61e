"""Decodes the block design's fingerprints from real numbers, with a proven bound on false accusation.

The paper's own rule for bits, [`BlockDesign.coalition_of`], has no bound if a bit is wrong.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaln

from hf_fingerprint.codes.bounds import check_alpha
from hf_fingerprint.codes.deepmarks.block_design import BlockDesign
from hf_fingerprint.codes.signals import from_unit_scale, to_unit_scale
from hf_fingerprint.errors import CodeError


MAX_COALITIONS = 200_000
_ROUNDING = 1e-10  # share of the signal's energy that counts as rounding error
_UNDERFLOW = 1e-290


@dataclass(frozen=True, eq=False)
class SoftDecoding:
    """The result of [`soft_decode`].

    Attributes:
        accused (`tuple[int, ...]`): recipients, ascending.
        weights (`np.ndarray` of shape `(v,)`): the non-negative least-squares weight of each copy in the signal.
        log10_bounds (`np.ndarray` of shape `(v,)`): the largest `log10 p_T` among the coalitions T without j.
        coalition (`int`): K, the largest coalition that the bound holds for.
    """

    accused: tuple[int, ...]
    weights: np.ndarray
    log10_bounds: np.ndarray
    coalition: int


def soft_decode(
    design: BlockDesign, extracted: np.ndarray, coalition: int | None = None, alpha: float = 1e-6
) -> SoftDecoding:
    """Accuses from real numbers; the probability of accusing any innocent is proven to be at most alpha.

    Recipient j's weights carry `U b_j`, where `b_j` is the codeword as signs and U is secret, Haar-random, with v
    orthonormal columns. The signal extracted from a suspect z is `y = U^T z`.

    All that the colluders T know of U is `U b_i` for i in T. Given this, U on the orthogonal complement of
    `span{b_i: i in T}` is still Haar-random and independent of z. So y, with that span projected out, has a uniform
    direction in `d = v - |T|` dimensions, whatever the colluders did, and the share of its energy in a fixed subspace
    of dimension a is Beta(a / 2, (d - a) / 2). For any set A of a other recipients, let x be the share of energy in
    the span of their projected `b_j`, and

        p_T = K C(d, a) P(Beta(a / 2, (d - a) / 2) >= x),   at most 1.

    The binomial and K pay for choosing A from y, among all sets of 1 to K recipients outside T, so for the true T
    `P(p_T <= alpha) <= alpha`. A is chosen among the recipients with the highest `<y, b_j>`, for the lowest p.

    j is accused iff every T of at most K recipients without j, also the empty T, has `p_T <= alpha`. An innocent is
    not in the true T, so accusing any innocent requires that one event: there is no union over recipients or
    coalitions. The proof assumes that the keyed generator of U is pseudo-random and that the suspect was made without
    feedback. (Trying only the T of exactly K would not do: a smaller coalition lies in many of them, each of which
    spares different innocents.) If all T are refuted, there were more than K colluders, and nobody is accused.

    All `b_j` have the same inner product with each other and are independent, so the energy of y in the span of any
    of them follows from the sum and the sum of squares of their `<y, b_j>`.

    Args:
        design (`BlockDesign`): the code.
        extracted (`np.ndarray` of shape `(v,)`): y, on any scale.
        coalition (`int`, *optional*): K, the largest number of colluders that the bound holds for, even beyond the
            design's resilience. Defaults to the largest number within it that is feasible.
        alpha (`float`): the bound on the probability of accusing any innocent, at most 0.05.

    Raises:
        [`CodeError`]: if the signal is not v finite numbers, alpha isn't above 0 and at most 0.05, or K is out of
            range or has more than `MAX_COALITIONS` coalitions.
    """
    y = design.check_extracted(extracted)
    size = _coalition_size(design.points, design.resilience, coalition)
    check_alpha(alpha)
    y, exponent = to_unit_scale(y)
    if not y.any():
        return SoftDecoding((), np.zeros(design.points), np.zeros(design.points), size)
    inner = design.signs @ y
    order = np.argsort(-inner, kind="stable")
    refuter = _Refuter(design, inner[order], float(y @ y), size)
    ranked = np.full(design.points, -np.inf)
    highest = -np.inf
    for number in range(size + 1):
        sets = _subsets(design.points, number)
        log10_p = refuter.log10_p(sets)
        top = int(np.argmax(log10_p))
        highest = max(highest, log10_p[top])
        best = np.full(design.points, log10_p[top])
        for j in sets[top]:
            best[j] = log10_p[(sets != j).all(axis=1)].max()
        np.maximum(ranked, best, out=ranked)
    bounds, weights = np.empty((2, design.points))
    bounds[order] = ranked
    weights[order] = from_unit_scale(refuter.weights(), exponent)
    level = math.log10(alpha)
    accused = np.flatnonzero(bounds <= level) if highest > level else np.empty(0, dtype=int)
    return SoftDecoding(tuple(accused.tolist()), weights, bounds, size)


def _coalition_size(points: int, resilience: int, coalition: int | None) -> int:
    if coalition is None:
        return max(s for s in range(1, resilience + 1) if s == 1 or math.comb(points, s) <= MAX_COALITIONS)
    if not 1 <= coalition < points / 2:
        raise CodeError(f"`coalition` must be from 1 to {(points - 1) // 2} for {points} recipients, got {coalition}.")
    if math.comb(points, coalition) > MAX_COALITIONS:
        raise CodeError(
            f"There are {math.comb(points, coalition):,} coalitions of {coalition} among {points} recipients, and at "
            f"most {MAX_COALITIONS:,} are tried: choose a smaller coalition."
        )
    return coalition


def _subsets(points: int, number: int) -> np.ndarray:
    """All sets of `number` recipients, `(C(points, number), number)`."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(points), number))
    return np.fromiter(flat, dtype=np.int16).reshape(math.comb(points, number), number)


class _Refuter:
    """Refutes coalitions of recipients, who are ranked by their inner product with y, highest first."""

    def __init__(self, design: BlockDesign, inner: np.ndarray, energy: float, coalition: int):
        self._inner, self._energy, self._size = inner, energy, coalition
        self._diagonal = 4 * design.resilience  # the Gram matrix of the b_j is diagonal I + common J
        self._common = design.points - self._diagonal

    def weights(self) -> np.ndarray:
        """The non-negative least squares fit of y by the `b_j`: `n w_j = max(0, <y, b_j> - common sum w)`."""
        count = np.arange(1, len(self._inner) + 1)
        total = np.cumsum(self._inner) / (self._diagonal + count * self._common)
        # the positive weights are the longest prefix whose last weight is positive
        used = int(np.count_nonzero(np.logical_and.accumulate(self._inner > self._common * total)))
        residual_energy = self._inner - self._common * total[used - 1] if used else np.zeros_like(self._inner)
        return np.where(count <= used, residual_energy, 0.0) / self._diagonal

    def residual_energy(self, total: np.ndarray, squares: np.ndarray, number: np.ndarray | int) -> np.ndarray:
        """The energy of y outside the span of `number` of the `b_j`, given the sums of `<y, b_j>` and squares."""
        shared = self._common / (self._diagonal + number * self._common) * total**2
        return self._energy - (squares - shared) / self._diagonal

    def log10_p(self, sets: np.ndarray) -> np.ndarray:
        """`log10 p_T` for each row of ranks."""
        points, number = len(self._inner), sets.shape[1]
        d = points - number
        total, squares = self._inner[sets].sum(axis=1), np.square(self._inner[sets]).sum(axis=1)
        before = np.maximum(self.residual_energy(total, squares, number), _ROUNDING * self._energy)
        price = np.array([math.log10(self._size * math.comb(d, a)) for a in range(1, self._size + 1)])
        others = np.zeros(len(sets), dtype=np.intp)
        best = np.zeros(len(sets))
        for rank in range(min(points, number + self._size)):
            rows = np.flatnonzero((others < self._size) & (sets != rank).all(axis=1))
            others[rows] += 1
            total[rows] += self._inner[rank]
            squares[rows] += self._inner[rank] ** 2
            a = others[rows]
            after = np.maximum(self.residual_energy(total[rows], squares[rows], number + a), _ROUNDING * self._energy)
            tail = _log_tail(np.minimum(after / before[rows], 1.0), a, d) / math.log(10)
            best[rows] = np.minimum(best[rows], price[a - 1] + tail)
        return best


def _log_tail(rest: np.ndarray, a: np.ndarray, d: int) -> np.ndarray:
    """`log P(Beta(a / 2, (d - a) / 2) >= 1 - rest)`, or a slightly larger bound where that underflows."""
    p, q = (d - a) / 2, a / 2
    tail = betainc(p, q, rest)
    low = tail < _UNDERFLOW
    log = np.log(np.where(low, 1.0, tail))
    # the density is t^(p-1) (1-t)^(q-1) / B(p, q), and its second factor is largest at an end of [0, rest]
    p, q, u = p[low], q[low], rest[low]
    log[low] = p * np.log(u) - np.log(p) - betaln(p, q) + np.maximum(0.0, (q - 1) * np.log1p(-u))
    return log
