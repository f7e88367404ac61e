"""Anti-collusion codes from projective planes, as in DeepMarks: each coalition of at most k - 1 has a unique AND.

H. Chen, B. D. Rouhani, C. Fu, J. Zhao, F. Koushanfar, "DeepMarks", arXiv 1804.03648, after W. Trappe, M. Wu,
Z. J. Wang, K. J. R. Liu, "Anti-collusion fingerprinting for multimedia", IEEE Trans. Signal Processing 51 (2003).
Recipients are the blocks of a symmetric (v, k, 1) design, positions its points. A recipient's bit is 0 at the points
of the block and 1 elsewhere; the design is developed modulo v from a perfect difference set.

[`BlockDesign.coalition_of`] is that code's rule for bits, which is proven only if no bit is wrong. `soft_decoding.py`
decodes the same fingerprints without thresholds, with a proven bound on accusing any innocent.
"""

import itertools
import math
from functools import cached_property, lru_cache

import numpy as np

from hf_fingerprint.errors import CodeError


THRESHOLD = 0.85
_LARGEST_ORDER = 31


def _prime_power(order: int) -> tuple[int, int] | None:
    """`(p, m)` with `p^m = order`, or None."""
    p = next(i for i in range(2, order + 1) if order % i == 0)
    m = round(math.log(order, p))
    return (p, m) if p**m == order else None


SIZES = tuple(q * q + q + 1 for q in range(2, _LARGEST_ORDER + 1) if _prime_power(q))


def _field(prime: int, degree: int) -> np.ndarray:
    """The powers of a generator of GF(prime^degree), from 1 on: `(prime^degree - 1, degree)` coefficients.

    Searches for a polynomial `x^degree = constant + ...` modulo which x has the full order. All non-zero residues are
    then powers of x, so they have inverses and form the field. The norm of a generator generates GF(prime).
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
    """A perfect difference set: every non-zero number modulo `points` is the difference of exactly one ordered pair.

    J. Singer, Trans. AMS 43 (1938): for a generator x of GF(q^3), the i with `x^i` of trace 0 over GF(q), modulo
    `v = q^2 + q + 1`. This returns the translate that contains 0 and 1.

    Returns:
        `tuple[int, ...]`: the q + 1 members, ascending.

    Raises:
        [`CodeError`]: if `points`, v, is not one of `SIZES`.
    """
    if points not in SIZES:
        near = sorted(sorted(SIZES, key=lambda size: abs(size - points))[:3])
        raise CodeError(
            f"There is no projective plane with {points} points: choose {near[0]}, {near[1]} or {near[2]}, or another "
            f"q^2 + q + 1 with a prime power q up to {_LARGEST_ORDER}."
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
        self.points, self._base = points, difference_set(points)
        self.block_size = len(self._base)
        self.resilience = self.block_size - 1

    @cached_property
    def codewords(self) -> np.ndarray:
        """`bool`, shape `(v, v)`: row j is the codeword of recipient j, False at the points of block j."""
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

    def hard_bits(self, extracted: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
        """The bits of a suspect, 1 where the extracted signal is above the threshold.

        Args:
            extracted (`np.ndarray` of shape `(v,)`): 0 or 1 for one copy, in between for an average of copies.
            threshold (`float`): the paper's 0.85 keeps the AND of an average of up to 6 copies.
        """
        return self.check_extracted(extracted) > threshold

    def covered_by(self, word: np.ndarray) -> tuple[int, ...]:
        """Recipients whose codeword's zeros all are zeros of the word `(v,)`, even if they don't explain all of it."""
        return self._covered(self._bits(word))

    def coalition_of(self, word: np.ndarray) -> tuple[int, ...]:
        """The one coalition of at most k - 1 recipients whose codewords have this AND, `(v,)`; `()` if there is none.

        The zeros of an AND are the union of the coalition's blocks, so each colluder is covered. Nobody else is: two
        blocks meet in exactly one point, so K <= k - 1 blocks hold at most K < k of the k points of another block. So
        the covered recipients are the coalition. If they are more than k - 1 or have another AND, the word belongs to
        no coalition. The all-ones word covers nobody.
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
            raise CodeError("A word of this code must hold only zeros and ones: call `hard_bits` on the signal first.")
        return word.astype(bool)

    def check_extracted(self, extracted: np.ndarray) -> np.ndarray:
        """The extracted signal as `float64` of shape `(v,)`.

        Raises:
            [`CodeError`]: if it has another shape, or values that are not finite.
        """
        extracted = np.asarray(extracted, dtype=np.float64)
        if extracted.shape != (self.points,):
            raise CodeError(f"The extracted signal must have the shape ({self.points},), got {extracted.shape}.")
        if not np.isfinite(extracted).all():
            raise CodeError("The extracted signal has values that are not finite: extract it again.")
        return extracted
