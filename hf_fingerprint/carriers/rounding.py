"""Keyed stochastic rounding, which keeps the mark in half precision on average.

A mark below half a unit in the last place vanishes under rounding to nearest. Rounding up with the probability of the
remainder keeps its mean, and an extracted signal is a mean. M. P. Connolly, N. J. Higham, T. Mary, "Stochastic
rounding and its probabilistic backward error analysis", SIAM J. Sci. Comput. 43 (2021).
"""

import numpy as np

from hf_fingerprint.keys import Stream


_HALF_NORMAL, _HALF_STEP = 2.0**-14, 2.0**-24


def round_stochastically(values: np.ndarray, dtype: str, stream: Stream) -> np.ndarray:
    """Rounds to a dtype's grid, up or down with probabilities that keep the mean.

    Args:
        values (`np.ndarray`): `float32`, finite and within the dtype's range.
        dtype (`str`): `"F32"` (returned as is), `"F16"` or `"BF16"`.
        stream ([`Stream`]): keyed randomness, 2 bytes for each value.

    Returns:
        `np.ndarray`: `float32` values that are exact in the dtype.
    """
    if dtype == "F32":
        return values
    random = stream.take(2 * values.size).view("<u2").reshape(values.shape)
    dropped = 16 if dtype == "BF16" else 13
    mask = np.uint32((1 << dropped) - 1)
    rounded = ((values.view(np.uint32) + (random & mask)) & ~mask).view(np.float32)
    if dtype == "F16":
        small = np.abs(values) < _HALF_NORMAL
        if small.any():
            scaled = values[small].astype(np.float64) / _HALF_STEP + random[small] / 65536
            rounded[small] = (np.floor(scaled) * _HALF_STEP).astype(np.float32)
    return rounded
