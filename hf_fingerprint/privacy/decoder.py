"""The adversary that reconstructs images from codes: a decoder trained on public images and their codes.

It knows the client part, the bottleneck and the noise distribution, and has public images similar to the private
ones. That is the best case for an adversary, so the measured leakage is a cautious figure for data holders.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from hf_fingerprint.errors import FingerprintError


WIDTH, MIN_WIDTH, MIN_GRID = 64, 32, 4
MAX_POOLED_SIDE, RANK = 8, 256
_WINDOW, _SIGMA = 11, 1.5


@dataclass(frozen=True)
class ReconstructionQuality:
    """The similarity of an adversary's reconstructions to the images, averaged over images.

    Attributes:
        psnr (`float`): peak signal-to-noise ratio in dB.
        ssim (`float`): structural similarity, 1 for equal images.
    """

    psnr: float
    ssim: float

    def to_dict(self) -> dict[str, float]:
        """The fields as values for JSON."""
        return asdict(self)


class ImageDecoder(torch.nn.Module):
    """A small network from codes to images: local convolutions, plus a linear map over all positions, which matters
    most under noise.

    Args:
        code_shape (`tuple[int, ...]`): `(channels, height, width)`, `(tokens, channels)` or `(channels,)`.
        size (`tuple[int, int, int]`): channels, height and width of an image.
        width (`int`, *optional*, defaults to 64): hidden channels, halved at each upsampling down to 32.
    """

    def __init__(self, code_shape: tuple[int, ...], size: tuple[int, int, int], width: int = WIDTH):
        super().__init__()
        self.size, self._shape = size, code_shape
        if len(code_shape) == 3:
            channels, self._grid = code_shape[0], (code_shape[1], code_shape[2])
            n_inputs = channels * math.prod(min(MAX_POOLED_SIDE, side) for side in self._grid)
        else:
            channels, side = code_shape[-1], math.isqrt(code_shape[0]) if len(code_shape) == 2 else 1
            self._grid, n_inputs = (side, side), math.prod(code_shape)
        self._stem = torch.nn.Conv2d(channels, width, 3, padding=1)
        side_seen = min(MAX_POOLED_SIDE, max(MIN_GRID, *self._grid))
        self._see_all = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(n_inputs, RANK),
            torch.nn.Linear(RANK, width * side_seen**2),
            torch.nn.Unflatten(1, (width, side_seen, side_seen)),
        )
        layers, grid = [*_conv_block(width, width)], max(MIN_GRID, *self._grid)
        while 2 * grid < max(size[1:]):  # a pixel shuffle does the last doubling
            layers += [torch.nn.Upsample(scale_factor=2), *_conv_block(width, width := max(MIN_WIDTH, width // 2))]
            grid *= 2
        last = torch.nn.Conv2d(width, 4 * size[0], 3, padding=1)
        self._upsample = torch.nn.Sequential(*layers, last, torch.nn.PixelShuffle(2))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Images `(batch, *size)` from codes `(batch, *code_shape)`."""
        pooled = code
        if len(self._shape) == 3:
            pooled = adaptive_avg_pool2d(code, [min(MAX_POOLED_SIDE, side) for side in self._grid])
        else:
            tokens = code.reshape(len(code), -1, self._shape[-1])[:, -math.prod(self._grid) :]
            code = tokens.mT.reshape(len(code), -1, *self._grid)
        hidden = self._stem(code)
        if max(self._grid) < MIN_GRID:
            hidden = interpolate(hidden, size=(MIN_GRID, MIN_GRID))
        hidden = hidden + interpolate(self._see_all(pooled), size=hidden.shape[2:])
        images = self._upsample(torch.relu(hidden))
        return images if images.shape[2:] == self.size[1:] else interpolate(images, self.size[1:], mode="bilinear")


def _conv_block(inside: int, outside: int) -> list[torch.nn.Module]:
    return [torch.nn.Conv2d(inside, outside, 3, padding=1), torch.nn.BatchNorm2d(outside), torch.nn.ReLU()]


def structural_similarity(one: torch.Tensor, other: torch.Tensor, value_range: float) -> torch.Tensor:
    """The mean structural similarity of each pair of images, `(batch,)`, differentiable (Z. Wang et al., "Image
    quality assessment: from error visibility to structural similarity", 2004; Gaussian window of 11, deviation 1.5).

    Decoders train through it, unlike scikit-image's `structural_similarity` (NumPy only). Tests compare the two.

    Args:
        one, other (`torch.Tensor` of shape `(batch, channels, height, width)`): at least 11 pixels high and wide.
        value_range (`float`): the largest possible pixel value minus the smallest.
    """
    if min(one.shape[2:]) < _WINDOW:
        size = " by ".join(map(str, one.shape[2:]))
        raise FingerprintError(f"SSIM needs {_WINDOW} by {_WINDOW} pixels, got {size}: use larger images.")
    down, across = (_window_matrix(pixels).to(one) for pixels in one.shape[2:])

    def smooth(images: torch.Tensor) -> torch.Tensor:
        return down @ images @ across.T

    mean_one, mean_other = smooth(one), smooth(other)
    var_one, var_other = smooth(one * one) - mean_one**2, smooth(other * other) - mean_other**2
    both = smooth(one * other) - mean_one * mean_other
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    top = (2 * mean_one * mean_other + c1) * (2 * both + c2)
    return (top / ((mean_one**2 + mean_other**2 + c1) * (var_one + var_other + c2))).mean((1, 2, 3))


@lru_cache
def _window_matrix(pixels: int) -> torch.Tensor:
    """The sliding window as a matrix `(pixels - 10, pixels)`: its product is faster than a 1-channel convolution."""
    places = torch.arange(pixels) - torch.arange(pixels - _WINDOW + 1)[:, None] - _WINDOW // 2
    weights = torch.exp(-places.float().square() / (2 * _SIGMA**2)) * (places.abs() <= _WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def reconstruction_loss(reconstructed: torch.Tensor, images: torch.Tensor, value_range: float) -> torch.Tensor:
    """The adversary's loss for each image, `(batch,)`: squared error plus structural dissimilarity."""
    squared = ((reconstructed - images) / value_range).square().mean((1, 2, 3))
    return 10 * squared + 1 - structural_similarity(reconstructed, images, value_range)
