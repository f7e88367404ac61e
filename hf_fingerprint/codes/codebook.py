"""Codewords of recipients from their copy keys, and their scores against an extracted signal.

A codeword is `b` in {-1, +1}^V. Position `i` is +1 with probability `p_i`, independently, drawn from the stream of
the recipient's copy key. The probabilities are multiples of 2^-16, so they and the bounds built on them are exact.
Codewords are made in blocks, so that a million recipients never are in memory together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from hf_fingerprint.codes.signals import to_unit_scale
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.progress import Progress, silent


BLOCK = 16
SINGLE_PRECISION_CHUNK = 4096  # positions whose weights are added up in single precision
MAX_VECTOR_FUNCTIONS = 6
SCALE = 1 << 16
MIN_LENGTH, MAX_LENGTH = 64, 1 << 20


class Codebook(ABC):
    """A family of codewords of one length: what all recipients of a base share.

    Args:
        length (`int`): V, the number of positions; a multiple of 8.

    Attributes:
        family (`str`): its name in vaults.
        functions_per_round (`int`): H, how many score functions a round may try, which the bound pays for: those of
            [`score_functions`] and, for a biased code, the likelihood ratio.
    """

    family: str
    functions_per_round: int

    def __init__(self, length: int):
        if length % 8 or not MIN_LENGTH <= length <= MAX_LENGTH:
            allowed = f"a multiple of 8 from {MIN_LENGTH} to {MAX_LENGTH}"
            raise CodeError(f"The length of a code must be {allowed}, got {length}.")
        self.length = length

    @property
    @abstractmethod
    def probability(self) -> np.ndarray:
        """`p_i = P(b_i = +1)`, `float64` of shape `(V,)`."""

    @property
    @abstractmethod
    def stream_bytes(self) -> int:
        """Bytes of a copy key's stream per codeword."""

    @abstractmethod
    def bits_from(self, stream: np.ndarray, out: np.ndarray) -> None:
        """Fills `out` (`bool`, shape `(n, V)`, true is +1) from streams (`uint8`, shape `(n, stream_bytes)`)."""

    @abstractmethod
    def score_functions(self, residual: np.ndarray) -> np.ndarray:
        """Score functions for a centered signal: `float64` of shape `(H, V)`, which depend on the signal alone.

        Args:
            residual (`np.ndarray` of shape `(V,)`): the extracted signal without what all copies share and what the
                recipients accused so far explain, scaled by [`to_unit_scale`].
        """

    @cached_property
    def mean(self) -> np.ndarray:
        """`mu_i = E b_i`, shape `(V,)`."""
        return 2 * self.probability - 1

    @cached_property
    def variance(self) -> np.ndarray:
        """`var_i = E (b_i - mu_i)^2`, shape `(V,)`."""
        return 4 * self.probability * (1 - self.probability)

    def blocks(self, copy_keys: Sequence[bytes]) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the codewords of n copy keys of 32 bytes, block by block.

        Yields:
            `(rows, bits)`: a slice of the keys, and their bits, `(len(rows), V)`, which the next block overwrites.
        """
        count = min(BLOCK, len(copy_keys))
        stream = np.empty((count, self.stream_bytes), np.uint8)
        bits = np.empty((count, self.length), bool)
        for start in range(0, len(copy_keys), BLOCK):
            part = copy_keys[start : start + BLOCK]
            for row, key in zip(stream, part, strict=False):
                Stream(derive(key, "codeword", self.family)).fill(row)
            self.bits_from(stream[: len(part)], bits[: len(part)])
            yield slice(start, start + len(part)), bits[: len(part)]

    def codeword(self, copy_key: bytes) -> np.ndarray:
        """The codeword of one copy key, `int8` of shape `(V,)`, values -1 and +1."""
        ((_, bits),) = self.blocks([copy_key])
        return np.where(bits[0], np.int8(1), np.int8(-1))

    def packed(self, copy_keys: Sequence[bytes], progress: Progress | None = None) -> np.ndarray:
        """The codewords as packed bits, first position highest: `uint8` of shape `(n, V / 8)`."""
        progress = progress or silent
        out = np.empty((len(copy_keys), self.length // 8), np.uint8)
        for rows, bits in self.blocks(copy_keys):
            out[rows] = np.packbits(bits, axis=1)
            progress("generating codewords", rows.stop, len(copy_keys))
        return out

    def standardize(self, functions: np.ndarray) -> np.ndarray:
        """Scales score functions so that an innocent's score has variance 1, whatever their unit.

        Args:
            functions (`np.ndarray` of shape `(H, V)`): finite h.

        Returns:
            `np.ndarray` of shape `(H, V)`: 0 for a function without information, and where all hold the same bit.

        Raises:
            [`CodeError`]: if a function has values that are not finite.
        """
        if not np.isfinite(functions).all():
            raise CodeError("A score function has values that are not finite: extract the signal again.")
        informative = np.where(self.variance > 0, functions, 0.0)
        out = np.stack([to_unit_scale(function)[0] for function in informative]) if len(informative) else informative
        norm = np.sqrt((out**2 * self.variance).sum(axis=1, keepdims=True))
        return out / np.where(norm > 0, norm, 1)

    def scores(
        self, copy_keys: Sequence[bytes], functions: np.ndarray, progress: Progress | None = None
    ) -> np.ndarray:
        """`S_jh = sum_i h_i (b_ji - mu_i)` for each recipient `j`, streamed.

        Args:
            copy_keys (sequence of `bytes`): n copy keys of 32 bytes.
            functions (`np.ndarray` of shape `(H, V)`): standardized score functions, see [`standardize`].
            progress (callable, *optional*): a [`Progress`].

        Returns:
            `np.ndarray` of shape `(n, H)`, up to [`screening_error`]: screen by it, and decide by [`packed_scores`].
        """
        return self._scores(self.blocks(copy_keys), len(copy_keys), functions, progress or silent)

    def packed_scores(self, packed: np.ndarray, functions: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
        """[`scores`] of [`packed`] codewords, in double precision wherever it could matter.

        Args:
            packed (`np.ndarray` of shape `(n, V / 8)`): codewords.
            functions (`np.ndarray` of shape `(H, V)`): score functions.
            least (`np.ndarray` of shape `(H,)`, *optional*): the lowest score by each function that matters; by
                default all do. Who reaches one in single precision, up to its error, gets exact scores.

        Returns:
            `np.ndarray` of shape `(n, H)`. A recipient's exact scores don't depend on the other recipients.
        """
        exact = np.arange(len(packed))
        out = np.empty((len(packed), len(functions)))
        if least is not None:
            blocks = (slice(start, start + BLOCK) for start in range(0, len(packed), BLOCK))
            unpacked = ((rows, np.unpackbits(packed[rows], axis=1)) for rows in blocks)
            out = self._scores(unpacked, len(packed), functions, silent)
            exact = np.flatnonzero(~(out < least - self.screening_error(functions)).all(axis=1))
        for row in exact:
            out[row] = functions @ (2.0 * np.unpackbits(packed[row]) - (1 + self.mean))
        return out

    def screening_error(self, functions: np.ndarray) -> np.ndarray:
        """The largest error of [`scores`] in single precision, shape `(H,)`.

        Weights are rounded once. Up to `SINGLE_PRECISION_CHUNK` of them are added with one rounding each, in any
        order; these sums are added in double precision. Higham, "Accuracy and Stability of Numerical Algorithms", 4.2.
        """
        roundings = min(SINGLE_PRECISION_CHUNK, self.length) + 1
        unit, slack, smallest = 2.0**-24, 1.01, self.length * 2.0**-126
        return slack * roundings * unit * np.abs(2 * functions).sum(axis=1) + smallest

    def _scores(
        self, blocks: Iterable[tuple[slice, np.ndarray]], count: int, functions: np.ndarray, progress: Progress
    ) -> np.ndarray:
        weights = (2 * functions).astype(np.float32)
        out = np.zeros((count, len(functions)))
        buffer = np.empty((min(BLOCK, count), self.length), np.float32)
        for rows, bits in blocks:
            np.copyto(buffer[: len(bits)], bits)
            for start in range(0, self.length, SINGLE_PRECISION_CHUNK):
                chunk = slice(start, start + SINGLE_PRECISION_CHUNK)
                if len(weights) > MAX_VECTOR_FUNCTIONS:
                    out[rows] += buffer[: len(bits), chunk] @ weights[:, chunk].T
                else:  # matrix-vector products are 7 times as fast as a thin matrix product
                    for column, weight in enumerate(weights):
                        out[rows, column] += buffer[: len(bits), chunk] @ weight[chunk]
            progress("scoring", rows.stop, count)
        out -= (functions * (1 + self.mean)).sum(axis=1)
        return out
