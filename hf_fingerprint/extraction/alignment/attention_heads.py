"""Attention heads whose queries and keys, or values and outputs, were written in another basis, or stand elsewhere.

A head's scores are `q^T k`, so `q' = A q`, `k' = A^-T k` gives the same for any invertible A; likewise values and the
output projection. The base tells A, up to what the mark itself has in the directions of that freedom, where it cannot
be read.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, solve_sylvester
from scipy.optimize import linear_sum_assignment


STEPS, MAX_STEP, TOLERANCE = 16, 0.5, 1e-3  # of the steps' sizes
_TINY = 1e-9


class HeadBasisChange(NamedTuple):
    """How heads are put back.

    Attributes:
        order (`np.ndarray` of shape `(heads,)`): for each head of the base, the suspect's.
        basis_change (`np.ndarray` of shape `(heads, width, width)`): what its first weights are multiplied with (queries,
            values).
        dual_basis_change (`np.ndarray` of shape `(heads, width, width)`): the same for the second (keys, output columns): the
            transposed inverse.
    """

    order: np.ndarray
    basis_change: np.ndarray
    dual_basis_change: np.ndarray

    def first(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's first weights, `(heads, width, n)`, as the base has them."""
        return self.basis_change @ theirs[self.order]

    def second(self, theirs: np.ndarray) -> np.ndarray:
        """The same of the second weights."""
        return self.dual_basis_change @ theirs[self.order]


def head_similarity(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How much of each head of the base lies in the row space of each of the suspect's, whatever its basis.

    Args:
        ours, theirs (`np.ndarray` of shape `(heads, width, n)`): weights.

    Returns:
        `np.ndarray` of shape `(heads, heads)`: shares of the energy.
    """
    spaces = np.linalg.qr(theirs.swapaxes(1, 2))[0]  # (heads, n, width)
    inside = np.einsum("hwn,gnv->hgwv", ours, spaces, optimize=True)
    energy = np.maximum(np.square(ours).sum((1, 2)), _TINY)
    return np.square(inside).sum((2, 3)) / energy[:, None]


def match_heads(*pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """For each head of the base, the suspect's, by all weights that they have."""
    return linear_sum_assignment(-sum(head_similarity(ours, theirs) for ours, theirs in pairs))[1]


def fit_head_bases(
    order: np.ndarray, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> HeadBasisChange:
    """The changes of basis that make a suspect's heads most like the base's.

    Least squares on the first weights or on the second starts; then both decide, `|a - G a'|^2 + |b - G^-T b'|^2`
    falling by Gauss-Newton steps `G <- (1 + X) G`, each of them a Sylvester equation. Of a copy that drifted the start
    is poor where a head has little energy, so long steps are cut short.

    Args:
        order (`np.ndarray` of shape `(heads,)`): see [`match_heads`].
        first, second (pair of `np.ndarray` of shape `(heads, width, n)`): ours and theirs; queries and keys, or values
            and the columns of the output projection.
    """
    (a, a_theirs), (b, b_theirs) = ((ours, theirs[order]) for ours, theirs in (first, second))
    pairs = [_fit_basis(*head) for head in zip(a, a_theirs, b, b_theirs, strict=True)]
    return HeadBasisChange(
        order,
        np.array([basis_change for basis_change, _ in pairs]),
        np.array([dual_basis_change for _, dual_basis_change in pairs]),
    )


def _fit_basis(
    a: np.ndarray, a_theirs: np.ndarray, b: np.ndarray, b_theirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    identity = np.eye(len(a))

    def residual_energy(basis_change: np.ndarray) -> float:
        return float(
            np.square(a - basis_change @ a_theirs).sum()
            + np.square(b - np.linalg.inv(basis_change).T @ b_theirs).sum()
        )

    try:
        starts = _least_squares(a, a_theirs), np.linalg.inv(_least_squares(b, b_theirs)).T
        basis_change = min(starts, key=residual_energy)
        for _ in range(STEPS):
            p, r = basis_change @ a_theirs, np.linalg.inv(basis_change).T @ b_theirs
            step = solve_sylvester(r @ r.T, p @ p.T, (a - p) @ p.T - r @ (b - r).T)
            size = float(np.linalg.norm(step))
            basis_change = (identity + step * min(1.0, MAX_STEP / max(size, _TINY))) @ basis_change
            if size < TOLERANCE:
                break
        return basis_change, np.linalg.inv(basis_change).T
    except (LinAlgError, np.linalg.LinAlgError, ValueError):  # a head of zeros has no basis to put back
        return identity, identity


def _least_squares(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(theirs.T, ours.T, rcond=1e-6)[0].T
