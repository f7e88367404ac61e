"""Aligns attention heads that were permuted, or whose weights were changed to another basis.

A head's scores are `q^T k`, so `q' = A q`, `k' = A^-T k` gives the same for any invertible A; likewise values and the
output projection. A is fitted to the base's weights, so it absorbs the part of the mark that looks like such a change.
"""

from typing import NamedTuple

import numpy as np


STEPS, MAX_STEP, TOLERANCE = 16, 0.5, 1e-3  # of the steps' sizes
_TINY = 1e-9
Pair = tuple[np.ndarray, np.ndarray]


class HeadBases(NamedTuple):
    """The transform that aligns heads.

    Attributes:
        order (`np.ndarray` of shape `(heads,)`): for each head of the base, the index of the suspect's head.
        basis (`np.ndarray` of shape `(heads, width, width)`): multiplies the first weights (queries, values).
        dual_basis (`np.ndarray` of the same shape): its transposed inverses, for the second weights (keys, outputs).
    """

    order: np.ndarray
    basis: np.ndarray
    dual_basis: np.ndarray

    def first(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's first weights, `(heads, width, n)`, aligned with the base's."""
        return self.basis @ theirs[self.order]

    def second(self, theirs: np.ndarray) -> np.ndarray:
        """The suspect's second weights, `(heads, width, n)`, aligned with the base's."""
        return self.dual_basis @ theirs[self.order]


def head_similarity(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The share of energy of each of the base's heads in the row space of each of the suspect's, in any basis.

    Args:
        ours, theirs (`np.ndarray` of shape `(heads, width, n)`): weights.

    Returns:
        `np.ndarray` of shape `(heads, heads)`.
    """
    spaces = np.linalg.qr(theirs.swapaxes(1, 2))[0]  # (heads, n, width)
    inside = np.einsum("hwn,gnv->hgwv", ours, spaces, optimize=True)
    energy = np.maximum(np.square(ours).sum((1, 2)), _TINY)
    return np.square(inside).sum((2, 3)) / energy[:, None]


def match_heads(*pairs: Pair) -> np.ndarray:
    """For each head of the base, the index of the suspect's head, by the similarity of all their weights."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(-sum(head_similarity(ours, theirs) for ours, theirs in pairs))[1]


def fit_head_bases(order: np.ndarray, first: Pair, second: Pair) -> HeadBases:
    """Fits the changes of basis that make a suspect's heads most similar to the base's.

    The start is the better least-squares fit of the first or the second weights. Then Gauss-Newton steps
    `G <- (1 + X) G`, each the solution of a Sylvester equation, minimize `|a - G a'|^2 + |b - G^-T b'|^2`. Steps are
    limited in length, since the start is poor for heads of little energy in a copy that drifted.

    Args:
        order (`np.ndarray` of shape `(heads,)`): see [`match_heads`].
        first, second (pair of `np.ndarray` of shape `(heads, width, n)`): the base's and the suspect's queries and
            keys, or values and output columns.
    """
    (a, a2), (b, b2) = ((ours, theirs[order]) for ours, theirs in (first, second))
    pairs = [_fit_basis(*head) for head in zip(a, a2, b, b2, strict=True)]
    bases, dual_bases = (np.array(each) for each in zip(*pairs, strict=True))
    return HeadBases(order, bases, dual_bases)


def _fit_basis(a: np.ndarray, a2: np.ndarray, b: np.ndarray, b2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import solve_sylvester

    identity = np.eye(len(a))

    def residual_energy(basis: np.ndarray) -> float:
        return float(np.square(a - basis @ a2).sum() + np.square(b - np.linalg.inv(basis).T @ b2).sum())

    try:
        starts = _fit_matrix(a, a2), np.linalg.inv(_fit_matrix(b, b2)).T
        basis = min(starts, key=residual_energy)
        for _ in range(STEPS):
            p, r = basis @ a2, np.linalg.inv(basis).T @ b2
            step = solve_sylvester(r @ r.T, p @ p.T, (a - p) @ p.T - r @ (b - r).T)
            size = float(np.linalg.norm(step))
            basis = (identity + step * min(1.0, MAX_STEP / max(size, _TINY))) @ basis
            if size < TOLERANCE:
                break
        return basis, np.linalg.inv(basis).T
    except (np.linalg.LinAlgError, ValueError):  # a head of zeros has no basis to fit
        return identity, identity


def _fit_matrix(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(theirs.T, ours.T, rcond=1e-6)[0].T
