"""The adversary who draws images from what was sent: a decoder trained on public images, whose codes it can make
itself.

It knows the front, the bottleneck and the law of the noise, and has public images of the same kind as the private
ones: the best case for it, and so the cautious one for the holder.
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from hf_fingerprint.errors import FingerprintError


WIDTH, LEAST_WIDTH, LEAST_GRID = 64, 32, 4
MOST_SEEN, RANK = 8, 256
_WINDOW, _SIGMA = 11, 1.5


@dataclass(frozen=True)
class Reconstruction:
    """How like the images an adversary's drawings are, on average over images.

    Attributes:
        psnr (`float`): peak signal-to-noise ratio, dB.
        ssim (`float`): structural similarity, 1 for the same image.
    """

    psnr: float
    ssim: float

    def to_dict(self) -> dict[str, float]:
        """As JSON knows it."""
        return asdict(self)


class Decoder(torch.nn.Module):
    """A small network from codes to images: convolutions, which see a place and those near it, and a linear map that
    sees all places at once. Under noise most is in the latter: what a code says of one place, others have to confirm.

    Args:
        code_shape (`tuple[int, ...]`): `(channels, height, width)`, `(tokens, channels)` or `(channels,)`.
        size (`tuple[int, int, int]`): of an image.
        width (`int`, *optional*, defaults to 64): channels inside, halved at each doubling down to 32.
    """

    def __init__(self, code_shape: tuple[int, ...], size: tuple[int, int, int], width: int = WIDTH):
        super().__init__()
        self.size, self._shape = size, code_shape
        if len(code_shape) == 3:
            channels, self._grid = code_shape[0], (code_shape[1], code_shape[2])
            numbers = channels * math.prod(min(MOST_SEEN, side) for side in self._grid)
        else:
            channels, side = code_shape[-1], math.isqrt(code_shape[0]) if len(code_shape) == 2 else 1
            self._grid, numbers = (side, side), math.prod(code_shape)
        self._enter = torch.nn.Conv2d(channels, width, 3, padding=1)
        seen = min(MOST_SEEN, max(LEAST_GRID, *self._grid))
        self._see_all = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(numbers, RANK),
            torch.nn.Linear(RANK, width * seen**2),
            torch.nn.Unflatten(1, (width, seen, seen)),
        )
        layers, grid = [*_block(width, width)], max(LEAST_GRID, *self._grid)
        while 2 * grid < max(size[1:]):  # its last step is a pixel shuffle
            layers += [torch.nn.Upsample(scale_factor=2), *_block(width, width := max(LEAST_WIDTH, width // 2))]
            grid *= 2
        last = torch.nn.Conv2d(width, 4 * size[0], 3, padding=1)
        self._draw = torch.nn.Sequential(*layers, last, torch.nn.PixelShuffle(2))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Images `(batch, *size)` from codes `(batch, *code_shape)`."""
        whole = code
        if len(self._shape) == 3:
            whole = adaptive_avg_pool2d(code, [min(MOST_SEEN, side) for side in self._grid])
        else:
            tokens = code.reshape(len(code), -1, self._shape[-1])[:, -math.prod(self._grid) :]
            code = tokens.mT.reshape(len(code), -1, *self._grid)
        hidden = self._enter(code)
        if max(self._grid) < LEAST_GRID:
            hidden = interpolate(hidden, size=(LEAST_GRID, LEAST_GRID))
        hidden = hidden + interpolate(self._see_all(whole), size=hidden.shape[2:])
        drawn = self._draw(torch.relu(hidden))
        return drawn if drawn.shape[2:] == self.size[1:] else interpolate(drawn, size=self.size[1:], mode="bilinear")


def _block(inside: int, outside: int) -> list[torch.nn.Module]:
    return [torch.nn.Conv2d(inside, outside, 3, padding=1), torch.nn.BatchNorm2d(outside), torch.nn.ReLU()]


def structural_similarity(one: torch.Tensor, other: torch.Tensor, span: float) -> torch.Tensor:
    """The mean structural similarity of each pair of images, `(batch,)`, differentiable (Z. Wang et al., "Image
    quality assessment: from error visibility to structural similarity", 2004; Gaussian window of 11, deviation 1.5).

    Args:
        one, other (`torch.Tensor` of shape `(batch, channels, height, width)`): at least 11 pixels either way.
        span (`float`): the largest value less the smallest that a pixel can have.
    """
    if min(one.shape[2:]) < _WINDOW:
        raise FingerprintError(f"Images of {one.shape[2]} by {one.shape[3]} pixels are too small for SSIM's window.")
    down, across = (_smoothing(pixels).to(one) for pixels in one.shape[2:])

    def smooth(images: torch.Tensor) -> torch.Tensor:
        return down @ images @ across.T

    mean_one, mean_other = smooth(one), smooth(other)
    var_one, var_other = smooth(one * one) - mean_one**2, smooth(other * other) - mean_other**2
    both = smooth(one * other) - mean_one * mean_other
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    top = (2 * mean_one * mean_other + c1) * (2 * both + c2)
    return (top / ((mean_one**2 + mean_other**2 + c1) * (var_one + var_other + c2))).mean((1, 2, 3))


@lru_cache
def _smoothing(pixels: int) -> torch.Tensor:
    """The window slid along a line of pixels, as a matrix: a product is faster than a convolution of one channel."""
    places = torch.arange(pixels) - torch.arange(pixels - _WINDOW + 1)[:, None] - _WINDOW // 2
    weights = torch.exp(-places.float().square() / (2 * _SIGMA**2)) * (places.abs() <= _WINDOW // 2)
    return weights / weights.sum(1, keepdim=True)


def drawing_loss(drawn: torch.Tensor, images: torch.Tensor, span: float) -> torch.Tensor:
    """What the adversary minimises for each image, `(batch,)`: squared error and dissimilarity, both measures at
    once."""
    squared = ((drawn - images) / span).square().mean((1, 2, 3))
    return 10 * squared + 1 - structural_similarity(drawn, images, span)
