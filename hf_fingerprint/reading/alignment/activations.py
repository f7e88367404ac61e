"""What goes into and comes out of the modules of two models on the same inputs.

A channel is known by what it does: the same inputs give the same activations, up to a factor, wherever it was moved to
(S. K. Ainsworth, J. Hayase, S. Srinivasa, "Git Re-Basin", ICLR 2023, section 3.1, for permutations).
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_fingerprint.models import BuiltModel, synthetic_images


if TYPE_CHECKING:
    import torch


IMAGES, BATCH = 16, 8
SAMPLES = 768
MOST = 1e12


class Activations(NamedTuple):
    """One module's, on a sample of images and places in them.

    Attributes:
        inputs (`np.ndarray` of shape `(channels in, samples)`): `float32`.
        outputs (`np.ndarray` of shape `(channels out, samples)`): `float32`.
    """

    inputs: np.ndarray
    outputs: np.ndarray


def compare_activations(
    ours: BuiltModel, theirs: "torch.nn.Module", modules: dict[str, str]
) -> dict[str, tuple[Activations, Activations]]:
    """Runs two models on the same synthetic images.

    Args:
        ours ([`BuiltModel`]): the base.
        theirs (`torch.nn.Module`): the suspect, in evaluation mode.
        modules (`dict[str, str]`): the names of modules of the base, and of their counterparts in the suspect.

    Returns:
        for each of the base's names that ran in both, `(ours, theirs)`.
    """
    images = synthetic_images(ours, IMAGES)
    one = _record(ours.module, images, list(modules))
    two = _record(theirs, images, list(modules.values()))
    return {a: (one[a], two[b]) for a, b in modules.items() if a in one and b in two}


def _record(module: "torch.nn.Module", images: "torch.Tensor", names: list[str]) -> dict[str, Activations]:
    import torch

    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    wanted = set(names)

    def hook(name: str) -> object:
        def note(called: "torch.nn.Module", inputs: tuple["torch.Tensor", ...], output: "torch.Tensor") -> None:
            if inputs:
                found[name].append((_sample(inputs[0], called), _sample(output, called)))

        return note

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    hooks = [
        part.register_forward_hook(hook(name))
        for name, part in module.named_modules()
        if name in wanted and isinstance(part, kinds)
    ]
    try:
        with torch.no_grad():
            for batch in images.split(BATCH):
                module(batch)
    finally:
        for each in hooks:
            each.remove()
    return {
        name: Activations(*(np.concatenate(parts, 1) for parts in zip(*pairs, strict=True)))
        for name, pairs in found.items()
        if pairs
    }


def _sample(values: "torch.Tensor", module: "torch.nn.Module") -> np.ndarray:
    """Channels first, at places that are the same in both models."""
    import torch

    convolution = isinstance(module, torch.nn.modules.conv._ConvNd)
    shape = (values.shape[0], *values.shape[2:]) if convolution else values.shape[:-1]
    places = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    index = torch.unravel_index(places[: SAMPLES * BATCH // IMAGES], shape)
    picked = values[index[0], :, *index[1:]] if convolution else values[index]
    return usable(picked.T.float().numpy())


def usable(values: np.ndarray) -> np.ndarray:
    """The values, with 0 for those whose products wouldn't be numbers."""
    return np.where(np.abs(values) < MOST, values, np.float32(0))
