from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from hf_fingerprint.blackbox.trigger_set.covers import MAX_LEVEL, MIN_LEVEL
from hf_fingerprint.blackbox.trigger_set.rendering import CACHED, GRAY_WEIGHTS, Renderer, batch_slices
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, synthetic_cover_images
from tests.helpers.tiny_built import tiny


COUNT = CACHED + 3
COVERS = torch.from_numpy(synthetic_cover_images(bytes(32), COUNT)).permute(0, 3, 1, 2).float()


def interpolated(covers, patterns, crop, built):
    """The same by `interpolate`."""
    _, height, width = built.size
    finer = interpolate(patterns, size=(224, 224), mode="bilinear")
    images = (covers + finer).clamp(MIN_LEVEL, MAX_LEVEL) / 255
    size = (int(height / crop), int(width / crop))
    images = interpolate(images, size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    if len(built.mean) == 1:
        images = sum(weight * images[:, i : i + 1] for i, weight in enumerate(GRAY_WEIGHTS))
    mean, std = (torch.tensor(values)[:, None, None] for values in (built.mean, built.std))
    return (images[..., top : top + height, left : left + width] - mean) / std


@pytest.mark.parametrize("size", [32, 160, 224, 256])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("gray", [False, True])
def test_products_of_matrices_are_the_resizing_of_torch_and_have_its_gradient(size, crop, gray):
    built = tiny(crop, size=size)
    if gray:
        built = replace(built, size=(1, size, size), mean=built.mean[:1], std=built.std[:1])
    patterns = 60 * torch.randn(COUNT, 3, GRID, GRID, generator=torch.Generator().manual_seed(0))
    theirs = patterns.clone().requires_grad_(True)
    rendered, by_patterns = Renderer(crop, built, patterns).render_with_gradient(COVERS, patterns)
    wanted = interpolated(COVERS, theirs, crop, built)
    weights = torch.randn(rendered.shape, generator=torch.Generator().manual_seed(1))
    by_ours = by_patterns(weights)
    (by_theirs,) = torch.autograd.grad((wanted * weights).sum(), theirs)

    assert rendered.shape == (COUNT, *built.size)
    assert torch.allclose(rendered, wanted, atol=1e-4)
    assert torch.allclose(by_ours, by_theirs, atol=1e-4 * float(by_theirs.abs().max()))


@pytest.mark.parametrize(("size", "largest"), [(32, 100), (64, 100), (160, 31), (224, 16), (448, 4)])
def test_small_images_go_through_the_model_together_and_large_ones_apart(size, largest):
    slices = batch_slices(100, tiny(size=size))

    assert max(part.stop - part.start for part in slices) == largest
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(100))
