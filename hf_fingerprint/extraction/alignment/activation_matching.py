"""Records the inputs and outputs of the modules of two models on the same images.

A channel is identified by its function: the same inputs give the same activations, up to a factor, wherever it was
moved (S. K. Ainsworth, J. Hayase, S. Srinivasa, "Git Re-Basin", ICLR 2023, section 3.1, for permutations).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hf_fingerprint.models import BuiltModel, run_model, synthetic_images, to_device


if TYPE_CHECKING:
    import torch


MIN_IMAGES, MAX_IMAGES, BATCH = 16, 256, 8
PIXELS = MIN_IMAGES * 224 * 224  # smaller images are more in number, since late layers have few places in each
SAMPLES = 768
MAX_ABS = 1e12
ActivationPairs = dict[str, tuple["Activations", "Activations"]]  # the base's and the suspect's, by module


class Activations(NamedTuple):
    """One module's activations, on a sample of images and places in them.

    Attributes:
        inputs (`np.ndarray` of shape `(channels in, samples)`): `float32`.
        outputs (`np.ndarray` of shape `(channels out, samples)`): `float32`.
        gain, shift (`np.ndarray` of shape `(channels in,)`, *optional*): of the layer normalization before the module.
        scale (`np.ndarray` of shape `(channels out,)`, *optional*): the layer scale after the module.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    gain: np.ndarray | None = None
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None


def record_activation_pairs(
    ours: BuiltModel,
    theirs: "torch.nn.Module",
    modules: dict[str, str],
    device: "str | torch.device | None" = None,
) -> ActivationPairs:
    """Runs two models on the same synthetic images.

    Args:
        ours, theirs ([`BuiltModel`] and `torch.nn.Module`): the base, and the suspect in evaluation mode.
        modules (`dict[str, str]`): the names of modules of the base, and of their counterparts in the suspect.
        device (`str` or `torch.device`, *optional*): the device that both are moved to. Defaults to where they are.

        Returns:
            `dict[str, tuple[Activations, Activations]]`: `(ours, theirs)` by the base's module, if it ran in both.
    """
    _, height, width = ours.size
    images = synthetic_images(ours, min(MAX_IMAGES, max(MIN_IMAGES, PIXELS // (height * width))))
    one = record_activations(to_device(ours.module, device), images, list(modules))
    to_device(theirs, device)
    try:
        two = record_activations(theirs, images, list(modules.values()))
    except RuntimeError:  # the suspect's widths don't fit each other
        return {}
    return {a: (one[a], two[b]) for a, b in modules.items() if a in one and b in two}


def record_activations(module: "torch.nn.Module", images: "torch.Tensor", names: list[str]) -> dict[str, Activations]:
    """Runs a model on images `(n, channels, height, width)`.

    Returns:
        `dict[str, Activations]`: by the names of those of its linear layers and convolutions that ran, in the order in
        which they first did.
    """
    import torch

    found: dict[str, list[tuple[np.ndarray, ...]]] = {}
    wanted = set(names)
    norms: dict[str, dict[str, np.ndarray]] = {}
    n_places = -(-SAMPLES * BATCH // len(images))
    normed: tuple[torch.Tensor, torch.nn.Module] | None = None
    latest: tuple[torch.Tensor, str] | None = None

    def record_norm(called: "torch.nn.Module", inputs: tuple["torch.Tensor", ...], output: "torch.Tensor") -> None:
        nonlocal normed
        scale = _layer_scale(called)
        if scale is None:
            normed = output, called
        elif latest is not None and inputs[0].data_ptr() == latest[0].data_ptr():
            norms.setdefault(latest[1], {})["scale"] = scale

    def hook(name: str) -> Callable[..., None]:
        def record(called: "torch.nn.Module", inputs: tuple["torch.Tensor", ...], output: "torch.Tensor") -> None:
            nonlocal latest
            latest = output, name
            if inputs:
                found.setdefault(name, []).append(
                    tuple(_sample_channels(each, called, n_places) for each in (inputs[0], output))
                )
                if normed is not None and inputs[0] is normed[0]:
                    norms.setdefault(name, {}).update(_norm_affine(normed[1], inputs[0].shape[-1]))

        return record

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    hooks = [
        part.register_forward_hook(hook(name) if isinstance(part, kinds) else record_norm)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.LayerNorm)
        or _layer_scale(part) is not None
        or (name in wanted and isinstance(part, kinds))
    ]
    try:
        with torch.no_grad():
            for batch in images.split(BATCH):
                run_model(module, batch)
    finally:
        for each in hooks:
            each.remove()
    return {
        name: Activations(*(np.concatenate(parts, 1) for parts in zip(*pairs, strict=True)), **norms.get(name, {}))
        for name, pairs in found.items()
    }


def _norm_affine(norm: "torch.nn.Module", channels: int) -> dict[str, np.ndarray]:
    """The gain and the shift of a layer normalization."""
    gain, shift = (getattr(norm, kind, None) for kind in ("weight", "bias"))
    return {
        "gain": np.ones(channels) if gain is None else gain.detach().cpu().double().numpy(),
        "shift": np.zeros(channels) if shift is None else shift.detach().cpu().double().numpy(),
    }


def _layer_scale(part: "torch.nn.Module") -> np.ndarray | None:
    """The factors of a layer scale (timm's `gamma`, transformers' `lambda1`), or `None` for another module."""
    own = dict(part.named_parameters(recurse=False))
    if len(own) != 1 or not own.keys() <= {"gamma", "lambda1"}:
        return None
    (values,) = own.values()
    return values.detach().cpu().double().numpy()


def _sample_channels(values: "torch.Tensor", module: "torch.nn.Module", n_places: int) -> np.ndarray:
    """Samples values at `n_places` places, the same in both models: `(channels, places)`."""
    import torch

    convolution = isinstance(module, torch.nn.modules.conv._ConvNd)
    shape = (values.shape[0], *values.shape[2:]) if convolution else values.shape[:-1]
    chosen = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(0))[:n_places]
    index = torch.unravel_index(chosen, shape)
    picked = values[index[0], :, *index[1:]] if convolution else values[index]
    return zero_unusable(picked.T.float().cpu().numpy())


def zero_unusable(values: np.ndarray) -> np.ndarray:
    """The values, with 0 for those that are not finite, or so large that products would overflow."""
    return np.where(np.abs(values) < MAX_ABS, values, np.float32(0))
