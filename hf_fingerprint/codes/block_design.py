"""Anti-collusion codes from projective planes, as in DeepMarks: each coalition of at most k - 1 leaves its own AND.

H. Chen, B. D. Rouhani, C. Fu, J. Zhao, F. Koushanfar, "DeepMarks", arXiv 1804.03648, after W. Trappe, M. Wu,
Z. J. Wang, K. J. R. Liu, "Anti-collusion fingerprinting for multimedia", IEEE Trans. Signal Processing 51 (2003).
Recipients are the blocks of a symmetric (v, k, 1) design, positions its points. A recipient's bit is 0 at the points
of the block and 1 elsewhere; the design is developed modulo v from a perfect difference set.

[`BlockDesign.coalition_of`] is the rule of that code, for bits. [`soft_decode`] reads the same fingerprints without
thresholds and proves a bound on accusing anybody innocent, which the rule for bits has only where no bit is wrong.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import betainc, betaln

from hf_fingerprint.errors import CodeError


THRESHOLD = 0.85
BUDGET = 200_000
_LARGEST_ORDER = 31
_ROUNDING = 1e-10  # share of the reading's energy below which nothing is believed
_UNDERFLOW = 1e-290


def _prime_power(order: int) -> tuple[int, int] | None:
    """`(p, m)` with `p^m = order`, or None."""
    p = next(i for i in range(2, order + 1) if order % i == 0)
    m = round(math.log(order, p))
    return (p, m) if p**m == order else None


SIZES = tuple(q * q + q + 1 for q in range(2, _LARGEST_ORDER + 1) if _prime_power(q))


def _field(prime: int, degree: int) -> np.ndarray:
    """The powers of a generator of GF(prime^degree), from 1 on: `(prime^degree - 1, degree)` coefficients.

    Searches the `x^degree = constant + ...` for one by which x has the full order. All non-zero residues are then
    powers of x, so they have inverses and this is the field. The norm of a generator generates GF(prime).
    """
    one = (1,) + (0,) * (degree - 1)
    full = prime**degree - 1
    norms = {(-1) ** (degree + 1) * constant % prime: constant for constant in range(1, prime)}
    constants = [norms[g] for g in norms if len({pow(g, i, prime) for i in range(prime - 1)}) == prime - 1]
    for constant, *rest in itertools.product(constants, *[range(prime)] * (degree - 1)):
        powers = [one]
        while True:
            *low, high = powers[-1]
            shifted = [(a + high * b) % prime for a, b in zip(low, rest, strict=True)]
            power = (high * constant % prime, *shifted)
            if power == one:
                break
            powers.append(power)
        if len(powers) == full:
            return np.array(powers)
    raise AssertionError("every finite field has a generator")


@lru_cache(maxsize=len(SIZES))
def difference_set(points: int) -> tuple[int, ...]:
    """A perfect difference set: every number but 0 modulo `points` is a difference of two members in just one way.

    J. Singer, Trans. AMS 43 (1938): for a generator x of GF(q^3), the i with `x^i` of trace 0 over GF(q), modulo
    `v = q^2 + q + 1`. Of its translates this is the one with 0 and 1 in it.

    Args:
        points (`int`): v, one of `SIZES`.

    Returns:
        `tuple[int, ...]`: the q + 1 members, ascending.

    Raises:
        [`CodeError`]: if `points` is not one of `SIZES`.
    """
    if points not in SIZES:
        near = sorted(sorted(SIZES, key=lambda size: abs(size - points))[:3])
        raise CodeError(
            f"No projective plane with {points} points can be made: "
            f"choose {near[0]}, {near[1]} or {near[2]}, or another q^2 + q + 1 with a prime power q up to "
            f"{_LARGEST_ORDER}."
        )
    q = math.isqrt(points)
    prime, exponent = _prime_power(q) or (q, 1)
    powers = _field(prime, 3 * exponent)
    i = np.arange(points)
    trace = sum(powers[i * q**e % len(powers)] for e in range(3)) % prime
    found = np.flatnonzero(~trace.any(axis=1))
    start = next(int(a) for a in found if (a + 1) % points in found)
    return tuple(sorted(int(a) for a in (found - start) % points))


class BlockDesign:
    """The code of a projective plane: v codewords of length v, resilient to k - 1 colluders.

    Args:
        points (`int`): v, one of `SIZES`: 7, 13, 21, 31, 57, 73, 91, 133, ...

    Attributes:
        points (`int`): v, the number of recipients and of positions.
        block_size (`int`): k, the number of zeros in a codeword.
        resilience (`int`): k - 1, the largest coalition that the code identifies.
    """

    def __init__(self, points: int):
        self._base = difference_set(points)
        self.points = points
        self.block_size = len(self._base)
        self.resilience = self.block_size - 1

    @cached_property
    def codewords(self) -> np.ndarray:
        """`bool`, shape `(v, v)`: row j is what recipient j gets, False at the points of block j."""
        shift = np.arange(self.points)[:, None]
        words = np.ones((self.points, self.points), dtype=bool)
        words[shift, (np.array(self._base) + shift) % self.points] = False
        words.flags.writeable = False
        return words

    @cached_property
    def signs(self) -> np.ndarray:
        """`float64`, shape `(v, v)`: the codewords as -1 and +1."""
        signs = 2.0 * self.codewords - 1
        signs.flags.writeable = False
        return signs

    def hard_bits(self, reading: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
        """The bits of a suspect, 1 where the reading is above the threshold.

        Args:
            reading (`np.ndarray` of shape `(v,)`): 0 or 1 for one copy, between them for an average of copies.
            threshold (`float`): the paper's 0.85 keeps the AND of an average of up to 6.
        """
        return self._checked(reading, "reading") > threshold

    def covered_by(self, word: np.ndarray) -> tuple[int, ...]:
        """Whoever has all zeros of the codeword among those of the word: accusing them all asks for no consistency.

        Args:
            word (`np.ndarray` of shape `(v,)`): bits.
        """
        return self._covered(self._bits(word))

    def coalition_of(self, word: np.ndarray) -> tuple[int, ...]:
        """The one coalition of at most k - 1 recipients whose codewords have this AND; `()` if there is none.

        The zeros of an AND are the union of the coalition's blocks, so each colluder is covered. Nobody else is: two
        blocks meet in exactly one point, so K <= k - 1 blocks hold at most K < k of the k points of another block. So
        the covered recipients are the coalition itself; where they are more than k - 1 or have a different AND, the
        word is nobody's. The all-ones word covers nobody.

        Args:
            word (`np.ndarray` of shape `(v,)`): bits.
        """
        word = self._bits(word)
        covered = self._covered(word)
        if not 0 < len(covered) <= self.resilience:
            return ()
        explained = np.logical_and.reduce(self.codewords[list(covered)])
        return covered if np.array_equal(explained, word) else ()

    @cached_property
    def _blocks(self) -> np.ndarray:
        return (~self.codewords).astype(np.float32)

    def _covered(self, word: np.ndarray) -> tuple[int, ...]:
        return tuple(np.flatnonzero(self._blocks @ word.astype(np.float32) == 0).tolist())

    def _bits(self, word: np.ndarray) -> np.ndarray:
        word = np.asarray(word)
        if word.shape != (self.points,):
            raise CodeError(f"A word of this code has {self.points} bits, not the shape {word.shape}.")
        if word.dtype != bool and not np.isin(word, (0, 1)).all():
            raise CodeError("A word of this code is of zeros and ones alone: get them from a reading with hard_bits.")
        return word.astype(bool)

    def _checked(self, reading: np.ndarray, what: str) -> np.ndarray:
        reading = np.asarray(reading, dtype=np.float64)
        if reading.shape != (self.points,):
            raise CodeError(f"A {what} of this code has {self.points} numbers, not the shape {reading.shape}.")
        if not np.isfinite(reading).all():
            raise CodeError(f"The {what} has values that are not finite, so it can't be decoded.")
        return reading


@dataclass(frozen=True, eq=False)
class SoftDecoding:
    """What [`soft_decode`] found.

    Attributes:
        accused (`tuple[int, ...]`): recipients, ascending.
        weights (`np.ndarray` of shape `(v,)`): how much of each copy explains the reading best, none negative.
        log10_bounds (`np.ndarray` of shape `(v,)`): the largest `log10 p_T` among the coalitions T without j.
        coalition (`int`): K, the largest coalition that the bound holds for.
    """

    accused: tuple[int, ...]
    weights: np.ndarray
    log10_bounds: np.ndarray
    coalition: int


def soft_decode(
    design: BlockDesign, reading: np.ndarray, coalition: int | None = None, alpha: float = 1e-6
) -> SoftDecoding:
    """Accuses from real numbers, with a proven bound: anybody innocent is accused with probability at most alpha.

    Recipient j's weights carry `U b_j`, where `b_j` is the codeword as signs and U secret, Haar-random, with v
    orthonormal columns. A suspect z is read as `y = U^T z`.

    The pirates T hold nothing that depends on U but `U b_i` for i in T. Given those, U on the orthogonal complement
    of `span{b_i: i in T}` is still Haar-random and independent of z. So y, with that span projected out, has a
    uniform direction in `d = v - |T|` dimensions, whatever the pirates did, and the share of its energy that lies in
    a fixed subspace of dimension a is Beta(a / 2, (d - a) / 2). For any other recipients A, a of them, let x be the
    share in the span of what is left of their `b_j`, and

        p_T = K C(d, a) P(Beta(a / 2, (d - a) / 2) >= x),   at most 1.

    The binomial and K pay for choosing A from y, among all sets of 1 to K recipients outside T, so for the true T
    `P(p_T <= alpha) <= alpha`. Here A is whatever of the recipients with the highest `<y, b_j>` gives the lowest p.

    j is accused iff every T of at most K recipients without j, the empty T too, has `p_T <= alpha`. An innocent is
    not in the true T, so accusing any needs that one event: no union over recipients or coalitions. (Trying only the
    T of exactly K would not do: a smaller coalition lies in many of them, each of which spares different innocents.)
    If all T are refuted, the pirates were more than K, which the proof excludes, and nobody is accused.

    All `b_j` have the same inner product with each other and are independent, so the energy of y in the span of any
    of them follows from the sum and the sum of squares of their `<y, b_j>`.

    Args:
        design (`BlockDesign`): the code.
        reading (`np.ndarray` of shape `(v,)`): y, on any scale.
        coalition (`int`, *optional*): K, the largest number of pirates that the bound shall hold for. It needn't be
            within the design's resilience. By default the largest that is, and is feasible.
        alpha (`float`): the probability of accusing anybody innocent.

    Raises:
        [`CodeError`]: if the reading is not v finite numbers, alpha no probability, or K makes no sense or has more
            than `BUDGET` coalitions.
    """
    y = design._checked(reading, "reading")
    size = _coalition_size(design.points, design.resilience, coalition)
    if not 0 < alpha < 1:
        raise CodeError(f"A false accusation with probability {alpha} can't be proven: choose between 0 and 1.")
    scale = float(np.abs(y).max())
    if scale == 0:
        return SoftDecoding((), np.zeros(design.points), np.zeros(design.points), size)
    y = y / scale
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
    bounds = np.empty(design.points)
    weights = np.empty(design.points)
    bounds[order] = ranked
    weights[order] = refuter.weights() * scale
    level = math.log10(alpha)
    accused = np.flatnonzero(bounds <= level) if highest > level else np.empty(0, dtype=int)
    return SoftDecoding(tuple(accused.tolist()), weights, bounds, size)


def _coalition_size(points: int, resilience: int, coalition: int | None) -> int:
    if coalition is None:
        return max(s for s in range(1, resilience + 1) if s == 1 or math.comb(points, s) <= BUDGET)
    if not 1 <= coalition < points / 2:
        raise CodeError(
            f"A coalition of {coalition} can't be refuted among {points} recipients: choose 1 to {(points - 1) // 2}."
        )
    if math.comb(points, coalition) > BUDGET:
        raise CodeError(
            f"There are {math.comb(points, coalition):,} coalitions of {coalition} among {points} recipients, more "
            f"than the {BUDGET:,} that are tried: choose a smaller coalition."
        )
    return coalition


def _subsets(points: int, number: int) -> np.ndarray:
    """All sets of `number` recipients, `(C(points, number), number)`."""
    flat = itertools.chain.from_iterable(itertools.combinations(range(points), number))
    return np.fromiter(flat, dtype=np.int16).reshape(math.comb(points, number), number)


class _Refuter:
    """Refutes coalitions of recipients who are ranked by their inner product with y, highest first."""

    def __init__(self, design: BlockDesign, inner: np.ndarray, energy: float, coalition: int):
        self._inner = inner
        self._energy = energy
        self._size = coalition
        self._own = 4 * design.resilience  # the Gram matrix of the b_j is own I + common J
        self._common = design.points - self._own

    def weights(self) -> np.ndarray:
        """The non-negative least squares fit of y by the `b_j`: `n w_j = max(0, <y, b_j> - common sum w)`."""
        count = np.arange(1, len(self._inner) + 1)
        total = np.cumsum(self._inner) / (self._own + count * self._common)
        # the positive ones are the first so many: as long as the last of them stays positive
        used = int(np.count_nonzero(np.logical_and.accumulate(self._inner > self._common * total)))
        left = self._inner - self._common * total[used - 1] if used else np.zeros_like(self._inner)
        return np.where(count <= used, left, 0.0) / self._own

    def left(self, total: np.ndarray, squares: np.ndarray, number: np.ndarray | int) -> np.ndarray:
        """The energy of y outside the span of `number` of the `b_j`, given the sums of `<y, b_j>` and squares."""
        return self._energy - (squares - self._common / (self._own + number * self._common) * total**2) / self._own

    def log10_p(self, sets: np.ndarray) -> np.ndarray:
        """`log10 p_T` for each row of ranks."""
        points, number = len(self._inner), sets.shape[1]
        d = points - number
        total, squares = self._inner[sets].sum(axis=1), np.square(self._inner[sets]).sum(axis=1)
        before = np.maximum(self.left(total, squares, number), _ROUNDING * self._energy)
        price = np.array([math.log10(self._size * math.comb(d, a)) for a in range(1, self._size + 1)])
        others = np.zeros(len(sets), dtype=np.intp)
        best = np.zeros(len(sets))
        for rank in range(min(points, number + self._size)):
            rows = np.flatnonzero((others < self._size) & (sets != rank).all(axis=1))
            others[rows] += 1
            total[rows] += self._inner[rank]
            squares[rows] += self._inner[rank] ** 2
            a = others[rows]
            after = np.maximum(self.left(total[rows], squares[rows], number + a), _ROUNDING * self._energy)
            tail = _log_tail(np.minimum(after / before[rows], 1.0), a, d) / math.log(10)
            best[rows] = np.minimum(best[rows], price[a - 1] + tail)
        return best


def _log_tail(rest: np.ndarray, a: np.ndarray, d: int) -> np.ndarray:
    """`log P(Beta(a / 2, (d - a) / 2) >= 1 - rest)`; where that underflows, something a little larger."""
    p, q = (d - a) / 2, a / 2
    tail = betainc(p, q, rest)
    low = tail < _UNDERFLOW
    log = np.log(np.where(low, 1.0, tail))
    # the density is t^(p-1) (1-t)^(q-1) / B(p, q), and its second factor is largest at an end of [0, rest]
    p, q, u = p[low], q[low], rest[low]
    log[low] = p * np.log(u) - np.log(p) - betaln(p, q) + np.maximum(0.0, (q - 1) * np.log1p(-u))
    return log
