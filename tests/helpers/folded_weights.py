"""The tiny copies' weights as converters write them: with the normalization next to a layer folded into it."""

from collections.abc import Iterable, Iterator

import numpy as np

from tests.helpers.forms import copy_weights


NORMS = {"conv1.0": "conv1.1", "conv1.3": "conv1.4", "conv1.6": "bn1"}


def folded_weights(kind: str, layer_norms: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of convolutions `(out, in, height, width)` and matrices `(out, in)`.

    Args:
        kind (`str`): the model, `"conv"` or `"vit"`.
        layer_norms (`bool`, *optional*, defaults to `False`): whether the layer norm before a matrix is folded too.
    """
    weights = copy_weights(kind)
    for name, values in weights.items():
        layer = name.removesuffix(".weight")
        norm = NORMS.get(layer, layer.replace("downsample.1", "downsample.2").replace(".conv", ".bn"))
        if layer == name or values.ndim < 2:
            continue
        factor = np.float32(1)
        if f"{norm}.running_var" in weights:
            factor = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + 1e-5)
            factor = factor.reshape(-1, 1, 1, 1)
        elif layer_norms and ("qkv" in layer or "fc1" in layer):
            factor = weights[f"{layer.rsplit('.', 2)[0]}.norm{1 if 'qkv' in layer else 2}.weight"]
        yield name, values * factor


def closest_error(tensors: Iterable[np.ndarray], expected: np.ndarray) -> float:
    """The root mean square error of the closest of some tensors of a shape, to the root mean square of the values."""
    errors = [np.linalg.norm(each - expected) for each in tensors if each.shape == expected.shape]
    return float(min(errors, default=np.inf) / np.linalg.norm(expected))
