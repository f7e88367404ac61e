"""Where and how strong: the mark's amplitude row by row, and a budget on the output spent over tensors.

A weight's amplitude is `a_k = eps_t * rms(row of k)`, a row being an output channel. To second order the mark changes
the output by `KL = sum_t eps_t^2 S_t`, S_t being the tensor's sensitivity.
"""

import numpy as np
from scipy.optimize import brentq


REFERENCE_KL, REFERENCE_CAP, MAX_CAP = 1e-4, 0.02, 0.1


def row_rms(values: np.ndarray) -> np.ndarray:
    """Root mean square of each row: `float32` of shape `(rows,)` for values of shape `(rows, columns)`."""
    return np.sqrt(np.einsum("rc,rc->r", values, values, dtype=np.float64) / max(values.shape[1], 1)).astype(
        np.float32
    )


def largest_eps(max_kl: float) -> float:
    """The largest `eps_t` that a budget pays for: 0.02 up to the usual 1e-4 nats, growing with its root, at most 0.1.

    A second-order estimate on a few inputs would mark an insensitive tensor as strongly as anything; who allows a
    larger change of the outputs gets a stronger mark there too.
    """
    return min(MAX_CAP, REFERENCE_CAP * max(1.0, max_kl / REFERENCE_KL) ** 0.5)


def spend_budget(max_kl: float, sensitivity: np.ndarray, counts: np.ndarray, cap: float | None = None) -> np.ndarray:
    """Spends the output budget over tensors: the same share for each weight, up to a cap.

    Maximises `sum_t n_t log eps_t` under `sum_t eps_t^2 S_t <= max_kl` and `eps_t <= cap`, which gives
    `eps_t^2 = min(cap^2, u n_t / S_t)`. Insensitive tensors are marked strongly, none is left out, so a copy
    put together layer by layer from several still shows everyone who gave a layer.

    Args:
        max_kl (`float`): the budget, in nats.
        sensitivity (`np.ndarray` of shape `(T,)`): S_t, KL for `eps_t = 1` to second order.
        counts (`np.ndarray` of shape `(T,)`): n_t, weights in each tensor.
        cap (`float`, *optional*): the largest `eps_t`; by default what [`largest_eps`] gives.

    Returns:
        `np.ndarray` of shape `(T,)`: `eps_t`.
    """
    cap = largest_eps(max_kl) if cap is None else cap
    worth = counts / np.maximum(sensitivity, 1e-30)
    if (cap**2 * sensitivity).sum() <= max_kl:
        return np.full(len(counts), cap)
    cost = lambda u: (np.minimum(cap**2, np.exp(u) * worth) * sensitivity).sum() - max_kl  # noqa: E731
    low = np.log(max_kl / counts.sum())
    high = np.log(cap**2 / worth.min())
    level = low if cost(low) >= 0 else brentq(cost, low, max(high, low + 1), xtol=1e-9)
    return np.minimum(cap, np.sqrt(np.exp(level) * worth))
