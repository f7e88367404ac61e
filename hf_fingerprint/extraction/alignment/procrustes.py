"""Finds the rotation of a transformer's residual stream, or a slice of it, as an orthogonal Procrustes problem.

If the gain of a layer normalization is folded into the next layer, any rotation of the stream that keeps its mean
leaves the function unchanged (S. Ashkboos et al., "SliceGPT", ICLR 2024, section 3). The rotation is fitted to the
normalized inputs of the layers that read the stream, in both models. A slice, of which the paper keeps the first
columns of the rotation, is fitted to the weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_fingerprint.extraction.alignment.activation_matching import Activations


MIN_EXPLAINED = 0.7
MAX_STEPS, TOLERANCE = 10, 3e-4  # of a slice's fit: steps, and the change of a column's direction in one
FACTOR_PASSES = 2
MIN_DETERMINED = 2  # rows of a layer, as a multiple of the channels, from which alone the factors are estimated
_RANK = 1e-10, 1e-5  # of the largest eigenvalue and singular value: less counts as 0
_TINY = 1e-12


def fit_stream_rotation(activations: Iterable[tuple[Activations, Activations]]) -> np.ndarray | None:
    """Fits the orthogonal matrix between the streams of two models: `theirs = basis @ ours`.

    Args:
        activations (iterable of pairs of [`Activations`]): the base's and the suspect's, of modules that read a
            normalized stream; others are ignored.

    Returns:
        `np.ndarray` of shape `(channels, channels)`, or `None` if no module reads a stream or no basis explains them.
    """
    products: dict[int, np.ndarray] = {}
    energies: dict[int, np.ndarray] = {}
    for ours, theirs in activations:
        one, two = _normalized_inputs(ours), _normalized_inputs(theirs)
        if one is not None and two is not None and one.shape == two.shape:
            width = len(one)
            products[width] = products.get(width, np.zeros((width, width))) + two @ one.T
            energies[width] = energies.get(width, np.zeros(2)) + np.array([np.vdot(one, one), np.vdot(two, two)])
    if not products:
        return None
    widest = max(energies, key=lambda width: float(energies[width][0]))
    explained = np.linalg.norm(products[widest], "nuc")
    if explained < MIN_EXPLAINED * np.sqrt(energies[widest].prod()):
        return None
    return nearest_orthogonal(products[widest])


def _normalized_inputs(activations: Activations) -> np.ndarray | None:
    """A module's inputs before the normalization's gain and shift, centered over the samples; `float64`."""
    if activations.gain is None or activations.shift is None:
        return None
    usable = np.abs(activations.gain) > _TINY
    inputs = np.divide(
        activations.inputs - activations.shift[:, None],
        activations.gain[:, None],
        out=np.zeros(activations.inputs.shape, np.float64),
        where=usable[:, None],
    )
    inputs -= inputs.mean(0)
    return inputs - inputs.mean(1, keepdims=True)


def nearest_orthogonal(product: np.ndarray) -> np.ndarray:
    """The orthogonal matrix nearest to a sum of `theirs ours^T` (P. Schönemann, Psychometrika 31 (1966))."""
    left, _, right = np.linalg.svd(product)
    return left @ right


@dataclass(frozen=True)
class SliceEquation:
    """One layer's weights on both sides of `theirs = (ours @ slice) * factors`, as their products.

    Attributes:
        power (`np.ndarray` of shape `(channels, channels)`): `ours^T ours`.
        product (`np.ndarray` of shape `(channels, channels kept)`): `ours^T theirs`.
        rows (`int`): how many rows both have.
    """

    power: np.ndarray
    product: np.ndarray
    rows: int

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray) -> "SliceEquation":
        """The equation of weights `(rows, channels)` and `(rows, channels kept)`, in units of ours."""
        unit = max(float(np.vdot(ours, ours)) / max(len(ours), 1), _TINY)
        return cls(ours.T @ ours / unit, ours.T @ theirs / unit, len(ours))

    def first_factors(self) -> np.ndarray:
        """The factors by this layer alone: the lengths of the columns that fit it best, `(channels kept,)`."""
        if self.rows < MIN_DETERMINED * len(self.power):
            return np.ones(self.product.shape[1])
        lengths = np.linalg.norm(_pseudo_inverse(self.power)[0] @ self.product, axis=0)
        return np.where(lengths > _TINY, lengths, 1.0)

    def factors(self, found: np.ndarray) -> np.ndarray:
        """The factors, given the slice; 1 where both have nothing in common."""
        both = np.einsum("cj,cj->j", self.product, found)
        power = np.einsum("cj,cj->j", found, self.power @ found)
        return np.divide(both, power, out=np.ones_like(both), where=both > _TINY + _RANK[1] * power)


def fit_stream_slice(equations: Sequence[SliceEquation]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Fits orthonormal columns to the layers that touch one segment of a stream.

    In each layer, `theirs = (ours @ slice) * factors`; the factors may be a normalization's gains. The start is the
    nearest isometry to the least-squares fit. Steps that each solve an orthogonal Procrustes problem then decrease the
    residual (J. ten Berge and D. Knol, Psychometrika 49 (1984), for slices of a rotation).

    Args:
        equations (sequence of [`SliceEquation`]): one or more, of equal widths.

    Returns:
        `(slice, factors)`: `float64` of shape `(channels, channels kept)`, and each layer's factors
        `(channels kept,)`. Directions that none of the layers has are left out.

    Raises:
        `np.linalg.LinAlgError`: if a decomposition does not converge.
    """
    power: np.ndarray = sum(each.power for each in equations)  # type: ignore[assignment]
    inverse, largest = _pseudo_inverse(power)
    factors = [each.first_factors() for each in equations]
    found = np.zeros_like(equations[0].product)
    for _ in range(FACTOR_PASSES):
        found = nearest_isometry(inverse @ _product(equations, factors))
        factors = [each.factors(found) for each in equations]
    product = _product(equations, factors)
    for _ in range(MAX_STEPS):
        before, found = found, nearest_isometry(product + largest * found - power @ found)
        if np.square(found - before).sum() < TOLERANCE**2 * found.shape[1]:
            break
    return found, factors


def _product(equations: Sequence[SliceEquation], factors: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of `ours^T theirs`, without the factors."""
    return np.sum([each.product / own for each, own in zip(equations, factors, strict=True)], axis=0)


def _pseudo_inverse(power: np.ndarray) -> tuple[np.ndarray, float]:
    """The inverse of a symmetric matrix where it has one, and its largest eigenvalue."""
    values, vectors = np.linalg.eigh(power)
    kept = values > _RANK[0] * values[-1]
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T, float(values[-1])


def nearest_isometry(matrix: np.ndarray) -> np.ndarray:
    """The matrix with orthonormal columns nearest to one `(rows, columns)`; without the directions that it lacks."""
    squares, vectors = np.linalg.eigh(matrix.T @ matrix)
    kept = squares > _RANK[1] ** 2 * max(float(squares[-1]), _TINY)
    found: np.ndarray = matrix @ (vectors[:, kept] / np.sqrt(squares[kept])) @ vectors[:, kept].T
    return found
