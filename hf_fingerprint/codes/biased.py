"""Codes with biased positions: position `i` is +1 with a secret probability `p_i`, a multiple of 2^-16.

With biased positions no strategy that picks among the pirates' values can hide all of them: where all hold the same
value it must show, and where one stands out it is worth more than a fair coin. The families differ in how the biases
are drawn. The scores are our own, for readings that are sums and not bits.
"""

from abc import abstractmethod

import numpy as np

from hf_fingerprint.codes.codebook import SCALE, Codebook
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive


FLOOR = 0.05


class BiasedCodebook(Codebook):
    """Independent positions with secret biases.

    Args:
        length (`int`): V, the number of positions; a multiple of 8.
        coalition (`int`): c, the number of colluders that the biases are chosen for.
        secret (`bytes`): the model secret; the biases derive from it.
    """

    functions_per_round = 3

    def __init__(self, length: int, coalition: int, secret: bytes):
        super().__init__(length)
        if coalition < 1:
            raise CodeError(f"A coalition of {coalition} can't be designed for: choose 1 or more.")
        self.coalition = coalition
        self._secret = secret

    @property
    @abstractmethod
    def thresholds(self) -> np.ndarray:
        """`2^16 p_i` as `uint16`, shape `(V,)`: a position is +1 where 16 bits of the stream fall below it."""

    @property
    def probability(self) -> np.ndarray:
        return self.thresholds / SCALE

    @property
    def stream_bytes(self) -> int:
        return 2 * self.length

    def bits_from(self, stream: np.ndarray, out: np.ndarray) -> None:
        np.less(stream.view("<u2"), self.thresholds, out=out)

    def score_functions(self, residual: np.ndarray) -> np.ndarray:
        """Two functions: `y / (a var + b)`, with the reading's energy fitted by `y^2 = a var + b`, is best on averages
        in whatever noise, and `y / (var + 0.05)` on minority votes."""
        order = np.argsort(self.variance, kind="stable")
        energy, variance = (
            [float(part.mean()) for part in np.array_split(values[order], 2)]
            for values in (residual**2, self.variance)
        )
        spread = variance[1] - variance[0]
        slope = max(0.0, (energy[1] - energy[0]) / spread) if spread else 0.0
        noise = max(energy[0] - slope * variance[0], FLOOR * slope)
        expected = slope * self.variance + noise
        average = np.divide(residual, expected, out=np.zeros(self.length), where=expected > 0)
        return np.stack([average, residual / (self.variance + FLOOR)])

    def uniforms(self) -> np.ndarray:
        """One number in [0, 1) for each position from the model secret, `float64` of shape `(V,)`."""
        raw = Stream(derive(self._secret, "biases", self.family)).take(8 * self.length).view("<u8")
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_thresholds(probability: np.ndarray) -> np.ndarray:
    """The nearest multiples of 2^-16 that leave a position uncertain, times 2^16: `uint16`."""
    return np.clip(np.rint(probability * SCALE), 1, SCALE - 1).astype(np.uint16)
