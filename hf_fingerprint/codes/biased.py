"""Codes with biased positions: position `i` is +1 with a secret probability `p_i`, a multiple of 2^-16.

With biased positions no strategy that picks among the colluders' values can hide all of them: a value that all of
them hold must show, and one that stands out is worth more than a fair coin. The families differ in how the biases are
drawn. The scores are our own: an extracted signal is a sum and not a bit.
"""

from abc import abstractmethod
from functools import cached_property

import numpy as np

from hf_fingerprint.codes.codebook import SCALE, Codebook
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.native import passes


REGULARIZATION = 0.05


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
            raise CodeError(f"`coalition` must be at least 1, got {coalition}.")
        self.coalition = coalition
        self._secret = secret

    @property
    @abstractmethod
    def thresholds(self) -> np.ndarray:
        """`2^16 p_i` as `uint16`, shape `(V,)`: a position is +1 if 16 bits of the stream are below it."""

    @property
    def probability(self) -> np.ndarray:
        return self.thresholds / SCALE

    @cached_property
    def _by_variance(self) -> np.ndarray:
        """The positions, the most biased first."""
        return np.argsort(self.variance, kind="stable")

    @property
    def stream_bytes(self) -> int:
        return 2 * self.length

    def pack_stream(self, stream: np.ndarray, out: np.ndarray) -> None:
        if passes is not None:
            passes.pack_biased(stream, self.thresholds, out)
        else:
            out[:] = np.packbits(stream.view("<u2") < self.thresholds)

    def score_functions(self, residual: np.ndarray) -> np.ndarray:
        """Two functions: `y / (a var + b)`, with `y^2 = a var + b` fitted to the signal's energy, is best on averages
        in any noise; `y / (var + 0.05)` is best on minority votes."""
        halves = [np.array_split(values[self._by_variance], 2) for values in (residual**2, self.variance)]
        energy, variance = ([float(part.mean()) for part in parts] for parts in halves)
        spread = variance[1] - variance[0]
        slope = max(0.0, (energy[1] - energy[0]) / spread) if spread else 0.0
        noise = max(energy[0] - slope * variance[0], REGULARIZATION * slope)
        expected = slope * self.variance + noise
        average = np.divide(residual, expected, out=np.zeros(self.length), where=expected > 0)
        return np.stack([average, residual / (self.variance + REGULARIZATION)])

    def uniforms(self) -> np.ndarray:
        """A number in [0, 1) for each position, derived from the model secret: `float64` of shape `(V,)`."""
        raw = Stream(derive(self._secret, "biases", self.family)).take(8 * self.length).view("<u8")
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_thresholds(probability: np.ndarray) -> np.ndarray:
    """Rounds to multiples of 2^-16 other than 0 and 1; returns them times 2^16, as `uint16`."""
    return np.clip(np.rint(probability * SCALE), 1, SCALE - 1).astype(np.uint16)
