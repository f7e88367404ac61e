"""The mark's amplitude in each row, from a budget on the change of the output.

A weight's amplitude is `a_k = eps_t * rms(row of k)`, where a row is an output channel. To second order the mark
changes the output by `KL = sum_t eps_t^2 S_t`, where S_t is the tensor's sensitivity.
"""

import numpy as np


REFERENCE_KL, REFERENCE_CAP, MAX_CAP = 1e-4, 0.02, 0.1


def row_rms(values: np.ndarray) -> np.ndarray:
    """Root mean square of each row: `float32` of shape `(rows,)` for values of shape `(rows, columns)`."""
    squares = np.einsum("rc,rc->r", values, values, dtype=np.float64)
    return np.sqrt(squares / max(values.shape[1], 1)).astype(np.float32)


def largest_eps(max_kl: float) -> float:
    """The largest `eps_t` under a budget: 0.02 up to 1e-4 nats, then growing with its root, at most 0.1.

    Without a cap, a second-order estimate on a few inputs would allow any amplitude in an insensitive tensor.
    """
    return min(MAX_CAP, REFERENCE_CAP * max(1.0, max_kl / REFERENCE_KL) ** 0.5)


def spend_budget(max_kl: float, sensitivity: np.ndarray, counts: np.ndarray, cap: float | None = None) -> np.ndarray:
    """Divides the output budget among tensors: the same share for each weight, up to a cap.

    Maximizes `sum_t n_t log eps_t` under `sum_t eps_t^2 S_t <= max_kl` and `eps_t <= cap`, which gives
    `eps_t^2 = min(cap^2, u n_t / S_t)`. Insensitive tensors are marked strongly and none is left out, so a model put
    together from layers of several copies still shows all of them.

    Args:
        max_kl (`float`): the budget, in nats.
        sensitivity (`np.ndarray` of shape `(T,)`): S_t, the KL for `eps_t = 1` to second order.
        counts (`np.ndarray` of shape `(T,)`): n_t, the number of weights in each tensor.
        cap (`float`, *optional*): the largest `eps_t`, by default [`largest_eps`].

    Returns:
        `np.ndarray` of shape `(T,)`: `eps_t`.
    """
    from scipy.optimize import brentq

    cap = largest_eps(max_kl) if cap is None else cap
    worth = counts / np.maximum(sensitivity, 1e-30)
    if (cap**2 * sensitivity).sum() <= max_kl:
        return np.full(len(counts), cap)
    cost = lambda u: (np.minimum(cap**2, np.exp(u) * worth) * sensitivity).sum() - max_kl  # noqa: E731
    low, high = np.log(max_kl / counts.sum()), np.log(cap**2 / worth.min())
    level = low if cost(low) >= 0 else brentq(cost, low, max(high, low + 1), xtol=1e-9)
    return np.minimum(cap, np.sqrt(np.exp(level) * worth))
