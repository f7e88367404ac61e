"""The residual stream of a transformer in another basis: every layer that reads or writes it was turned along.

After a layer normalisation with its gain folded into the next layer nothing but the stream's mean is fixed, so any
rotation that keeps the mean leaves the function as it is (S. Ashkboos et al., "SliceGPT", ICLR 2024, section 3). The
normalised inputs of the layers that read the stream, in both models, tell the rotation.
"""

from collections.abc import Iterable

import numpy as np

from hf_fingerprint.extraction.alignment.activation_matching import Activations


ALIKE = 0.7
_TINY = 1e-12


def stream_basis(seen: Iterable[tuple[Activations, Activations]]) -> np.ndarray | None:
    """The orthogonal matrix between the streams of two models: `theirs = basis @ ours`.

    Args:
        seen (iterable of pairs of [`Activations`]): of modules that read a normalised stream, the base's and the
            suspect's.

    Returns:
        `np.ndarray` of shape `(channels, channels)`; `None` if nothing reads a stream, or no basis makes them alike.
    """
    products: dict[int, np.ndarray] = {}
    energies: dict[int, np.ndarray] = {}
    for ours, theirs in seen:
        one, two = _plain_inputs(ours), _plain_inputs(theirs)
        if one is not None and two is not None and one.shape == two.shape:
            width = len(one)
            products[width] = products.get(width, np.zeros((width, width))) + two @ one.T
            energies[width] = energies.get(width, np.zeros(2)) + np.array([np.vdot(one, one), np.vdot(two, two)])
    if not products:
        return None
    widest = max(energies, key=lambda width: float(energies[width][0]))
    explained = np.linalg.norm(products[widest], "nuc")
    if explained < ALIKE * np.sqrt(energies[widest].prod()):
        return None
    return nearest_basis(products[widest])


def _plain_inputs(seen: Activations) -> np.ndarray | None:
    """A module's inputs as the normalisation before it left them, without its gain and shift, about their mean over
    the samples; `float64`."""
    if seen.gain is None or seen.shift is None:
        return None
    usable = np.abs(seen.gain) > _TINY
    inputs = np.divide(
        seen.inputs - seen.shift[:, None],
        seen.gain[:, None],
        out=np.zeros(seen.inputs.shape, np.float64),
        where=usable[:, None],
    )
    inputs -= inputs.mean(0)
    return inputs - inputs.mean(1, keepdims=True)


def nearest_basis(product: np.ndarray) -> np.ndarray:
    """The orthogonal matrix nearest to a sum of `theirs ours^T` (P. Schönemann, Psychometrika 31 (1966))."""
    left, _, right = np.linalg.svd(product)
    return left @ right
