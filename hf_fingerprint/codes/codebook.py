"""Codewords of recipients from their copy keys, and their scores against an extracted signal.

A codeword is `b` in {-1, +1}^V. Position `i` is +1 with probability `p_i`, independently, drawn from the stream of
the recipient's copy key. The probabilities are multiples of 2^-16, so they and the bounds built on them are exact.
Codewords are made in blocks, by several threads, so that a million recipients never are in memory together.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np

from hf_fingerprint.codes.scoring import error_bound, weigh_codewords
from hf_fingerprint.codes.signals import to_unit_scale
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.threads import map_ahead


BLOCK, PACKED_ROWS = 256, 64
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
    def pack_stream(self, stream: np.ndarray, out: np.ndarray) -> None:
        """Fills `out` (`uint8`, shape `(V / 8,)`, see [`packed`]) from a stream (`uint8`, shape `(stream_bytes,)`)."""

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

    def codeword(self, copy_key: bytes) -> np.ndarray:
        """The codeword of one copy key, `int8` of shape `(V,)`, values -1 and +1."""
        return np.where(np.unpackbits(self.packed([copy_key])[0]).view(bool), np.int8(1), np.int8(-1))

    def packed(self, copy_keys: Sequence[bytes], progress: Progress | None = None) -> np.ndarray:
        """The codewords as packed bits, first position highest: `uint8` of shape `(n, V / 8)`."""
        out = np.empty((len(copy_keys), self.length // 8), np.uint8)

        def pack(rows: slice) -> None:
            stream = np.empty(self.stream_bytes, np.uint8)
            for part in _parts(rows):
                self._pack(copy_keys[part], stream, out[part])

        self._each_block(pack, len(copy_keys), counting(progress, "generating codewords", len(copy_keys)))
        return out

    def _pack(self, copy_keys: Sequence[bytes], stream: np.ndarray, out: np.ndarray) -> None:
        # keys first: each stream leaves the interpreter to another thread, which may keep it for a while
        streams = [Stream(derive(key, "codeword", self.family)) for key in copy_keys]
        for each, row in zip(streams, out, strict=True):
            self.pack_stream(each.fill(stream), row)

    def _each_block(self, work: Callable[[slice], None], keys: int, count: Callable[[int], None]) -> None:
        """Calls `work` with slices of the keys, in several threads."""
        blocks = [slice(start, min(start + BLOCK, keys)) for start in range(0, keys, BLOCK)]
        for rows, _ in zip(blocks, map_ahead(work, blocks), strict=True):
            count(rows.stop - rows.start)

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
        weights, out = _rounded(functions), np.empty((len(copy_keys), len(functions)))

        def score(rows: slice) -> None:
            stream = np.empty(self.stream_bytes, np.uint8)
            packed = np.empty((PACKED_ROWS, self.length // 8), np.uint8)  # few enough to stay in the cache
            for part in _parts(rows):
                words = packed[: part.stop - part.start]
                self._pack(copy_keys[part], stream, words)
                out[part] = weigh_codewords(words, weights)

        self._each_block(score, len(copy_keys), counting(progress, "scoring", len(copy_keys)))
        return self._centered(out, functions)

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
            out = self._centered(weigh_codewords(packed, _rounded(functions)), functions)
            exact = np.flatnonzero(~(out < least - self.screening_error(functions)).all(axis=1))
        for row in exact:
            out[row] = functions @ (2.0 * np.unpackbits(packed[row]) - (1 + self.mean))
        return out

    def screening_error(self, functions: np.ndarray) -> np.ndarray:
        """The largest error of [`scores`] in single precision, shape `(H,)`; see [`error_bound`]."""
        return error_bound(2 * functions)

    def _centered(self, sums: np.ndarray, functions: np.ndarray) -> np.ndarray:
        sums -= (functions * (1 + self.mean)).sum(axis=1)
        return sums


def _parts(rows: slice) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, PACKED_ROWS):
        yield slice(start, min(start + PACKED_ROWS, rows.stop))


def _rounded(functions: np.ndarray) -> np.ndarray:
    """The weights of +1 in single precision."""
    return np.ascontiguousarray(2 * functions, np.float32)
