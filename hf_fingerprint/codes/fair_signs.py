"""Fair signs: positions are +1 or -1 with equal odds. The shortest code for up to two colluders; three erase it."""

import numpy as np

from hf_fingerprint.codes.codebook import Codebook


class FairSigns(Codebook):
    """Independent fair signs, `p_i = 1/2`.

    Args:
        length (`int`): V, the number of positions; a multiple of 8.
    """

    family = "fair_signs"
    functions_per_round = 1

    @property
    def probability(self) -> np.ndarray:
        return np.full(self.length, 0.5)

    @property
    def stream_bytes(self) -> int:
        return self.length // 8

    def pack_stream(self, stream: np.ndarray, out: np.ndarray) -> None:
        out[:] = stream

    def score_functions(self, residual: np.ndarray) -> np.ndarray:
        return residual[None, :].astype(np.float64)
