"""Nuida's code: the biases are the few Gauss-Legendre points for the coalition.

K. Nuida, S. Fujitsu, M. Hagiwara, T. Kitagawa, H. Watanabe, K. Ogawa, H. Imai, "An improvement of discrete Tardos
fingerprinting codes", Designs, Codes and Cryptography 52 (2009). The quadrature has ceil(c / 2) points, the fewest
possible, and is exact up to degree c - 1 (Nuida, Hagiwara, Watanabe, Imai, arXiv cs/0610036). So against c colluders
these biases are as good as the continuous ones.
"""

from functools import cached_property

import numpy as np

from hf_fingerprint.codes.biased import BiasedCodebook, to_thresholds
from hf_fingerprint.errors import CodeError


MAX_COALITION = 600  # for more, the outermost point lies below 2^-16


def nuida_biases(coalition: int) -> tuple[np.ndarray, np.ndarray]:
    """The biases for coalitions of up to c, and the probability that each is drawn.

    Args:
        coalition (`int`): c, 1 to `MAX_COALITION`.

    Returns:
        `(points, weights)`, each `float64` of shape `(ceil(c / 2),)`: `p = (1 + x) / 2` for the zeros x of the
        Legendre polynomial, ascending, and Gauss-Legendre weights over `sqrt(p (1 - p))`, with sum 1.
    """
    zeros, quadrature = np.polynomial.legendre.leggauss((coalition + 1) // 2)
    points = (1 + zeros) / 2
    weights = quadrature / np.sqrt(points * (1 - points))
    return points, weights / weights.sum()


class Nuida(BiasedCodebook):
    """A code with Gauss-Legendre biases for c colluders; for the arguments see [`BiasedCodebook`].

    Raises:
        [`CodeError`]: if c is more than `MAX_COALITION`.
    """

    family = "nuida"

    def __init__(self, length: int, coalition: int, secret: bytes):
        super().__init__(length, coalition, secret)
        if coalition > MAX_COALITION:
            fine = f"Nuida's biases for a coalition of {coalition} are finer than 2^-16"
            raise CodeError(f"{fine}: choose {MAX_COALITION} or fewer, or a Tardos code.")

    @cached_property
    def thresholds(self) -> np.ndarray:
        points, weights = nuida_biases(self.coalition)
        chosen = np.searchsorted(np.cumsum(weights)[:-1], self.uniforms(), side="right")
        return to_thresholds(points)[chosen]
