"""Finds the rotation of a transformer's residual stream, as an orthogonal Procrustes problem.

If the gain of a layer normalization is folded into the next layer, any rotation of the stream that keeps its mean
leaves the function unchanged (S. Ashkboos et al., "SliceGPT", ICLR 2024, section 3). The rotation is fitted to the
normalized inputs of the layers that read the stream, in both models.
"""

from collections.abc import Iterable

import numpy as np

from hf_fingerprint.extraction.alignment.activation_matching import Activations


MIN_EXPLAINED = 0.7
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
