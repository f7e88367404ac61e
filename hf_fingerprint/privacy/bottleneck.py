"""What goes over the wire for an image: a few linear combinations of its features, clipped, with noise.

    z = clip((B x - m) / s) + sigma n

B mixes the channels at each place (a 1x1 convolution without a bias; for tokens, a matrix), or all numbers of all
places; x are the features at the cut, or further inside ([`FrozenSegment`]). m and the number s make what is sent 0 on average
with mean square 1; the clip bounds the length of z for every image and every front. All of it is on the wire alone:
the model that is released has neither bottleneck nor noise.

That n numbers of mean square P behind Gaussian noise of variance sigma^2 tell at most n/2 log2(1 + P/sigma^2) bits
about anything is a theorem (C. E. Shannon, "Communication in the presence of noise", 1949), whatever the reader does.
How well images can be drawn from those bits is measured: see `leakage`.
"""

import math

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.frozen_segment import FrozenSegment


_BATCH = 256
MAX_POWER = 2.0  # of the mean square of a code; few images are clipped


class Bottleneck(torch.nn.Module):
    """B, m, s and sigma.

    Args:
        shape (`tuple[int, ...]`): of one image's features, as [`Partition`] gives it.
        channels (`int`): how many combinations of the features' channels are sent for each place; or of all numbers.
        sigma (`float`, *optional*, defaults to 0): the noise's deviation, in units of a sent number's.
        flatten_features (`bool`, *optional*, defaults to `False`): whether B mixes the numbers of all places, so that a code has
            no places of its own and a few dozen numbers do.
        segment ([`FrozenSegment`], *optional*): what the features at the cut are looked at through; with `flatten_features` only.

    Attributes:
        squeeze (`torch.nn.Parameter` of shape `(channels, features)`): B.
        mixed_shape (`tuple[int, ...]`): an image's features as B takes them: `shape`, or one line of all numbers,
            with a lens those that it shows.

    Raises:
        [`FingerprintError`]: if the bottleneck is wider than the features, sigma is no finite number from 0 on, or a
            lens is given for codes with places.
    """

    centre: torch.Tensor
    scale: torch.Tensor
    noise: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int,
        sigma: float = 0.0,
        flatten_features: bool = False,
        segment: FrozenSegment | None = None,
    ):
        super().__init__()
        if segment is not None and not flatten_features:
            raise FingerprintError("Further inside a model places are others than at the cut: give whole=True too.")
        self.shape, self.flatten_features, self.segment = tuple(shape), flatten_features, segment
        self.mixed_shape = (
            (math.prod(segment.shape if segment is not None else shape),) if flatten_features else self.shape
        )
        self._axis = 1 if len(self.mixed_shape) == 3 else -1
        features = self.mixed_shape[0 if len(self.mixed_shape) == 3 else -1]
        if not 1 <= channels <= features:
            raise FingerprintError(f"A bottleneck of {channels} channels doesn't fit features of {features}.")
        self.channels = channels
        self.squeeze = torch.nn.Parameter(torch.eye(channels, features), requires_grad=False)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("noise", torch.zeros(()))
        self.sigma = sigma

    def extra_repr(self) -> str:
        return f"shape={self.shape}, channels={self.channels}, sigma={self.sigma:.4g}, whole={self.flatten_features}"

    @property
    def sigma(self) -> float:
        """The noise's deviation, in units of a sent number's."""
        return float(self.noise)

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise FingerprintError(f"Noise of deviation {sigma} can't be drawn: choose a finite number from 0 on.")
        self.noise.fill_(sigma)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of what is sent for one image: that of the features with fewer channels, or `(channels,)`."""
        mixed = self.mixed_shape
        return (self.channels, *mixed[1:]) if len(mixed) == 3 else (*mixed[:-1], self.channels)

    @property
    def max_norm(self) -> float:
        """What the length of a code is clipped to: `sqrt(2 n)` for n numbers of mean square 1."""
        return math.sqrt(MAX_POWER * math.prod(self.code_shape))

    @property
    def bits_per_image(self) -> float:
        """The most that a send can tell about an image, in bits; infinite without noise."""
        if not self.sigma:
            return math.inf
        return math.prod(self.code_shape) / 2 * math.log2(1 + MAX_POWER / self.sigma**2)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """clip((B x - m) / s), of shape `(batch, *code_shape)`."""
        code = (self._mix(self.features_in_segment(features)) - self._broadcast_channels(self.centre)) / self.scale
        length = code.flatten(1).norm(dim=1).clamp_min(1e-12)
        shrink = (self.max_norm / length).clamp_max(1.0)
        return code * shrink.reshape(-1, *(1,) * (code.dim() - 1))

    def send(self, features: torch.Tensor, normal: torch.Tensor | None = None) -> torch.Tensor:
        """The code with noise, of shape `(batch, *code_shape)`.

        Args:
            features (`torch.Tensor` of shape `(batch, *shape)`): at the cut.
            normal (`torch.Tensor` of that shape, *optional*): standard normal numbers, such as [`ImageNoise`] draws
                for each image; by default fresh ones, which average out over many sends.
        """
        return self.with_noise(self.encode(features), normal)

    def with_noise(self, code: torch.Tensor, normal: torch.Tensor | None = None) -> torch.Tensor:
        """A code as it is sent; the arguments are those of [`send`]."""
        return code + self.noise * (torch.randn_like(code) if normal is None else normal)

    def features_in_segment(self, features: torch.Tensor) -> torch.Tensor:
        """What B is applied to: the features at the cut, or what the lens shows of them."""
        return features if self.segment is None else self.segment(features)

    @torch.no_grad()
    def fit_normalization(self, features: torch.Tensor) -> None:
        """Sets m and s by what public images' features give; how power is shared among channels is B's affair."""
        mixed = torch.cat([self._mix(self.features_in_segment(part)) for part in features.split(_BATCH)])
        axes = [axis for axis in range(mixed.dim()) if axis != self._axis % mixed.dim()]
        self.centre.copy_(mixed.mean(axes))
        self.scale.copy_(mixed.var(axes).mean().sqrt().clamp_min(1e-6))

    @torch.no_grad()
    def init_principal_components(self, features: torch.Tensor) -> None:
        """Sets B to the principal axes of public images' features, each with the same power, and normalises: of all
        maps to so few channels, those that lose least."""
        rows = self.rows(self.features_in_segment(features))
        rows = rows - rows.mean(0)
        powers, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
        leading = slice(-self.channels, None)
        self.squeeze.copy_((axes[:, leading] / powers[leading].clamp_min(1e-12).sqrt()).T)
        self.fit_normalization(features)

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """Features in rows, as B takes them: one for each image, or for each place of each image."""
        if self.flatten_features:
            return features.flatten(1)
        return features.reshape(len(features), *self.mixed_shape).movedim(self._axis, -1).flatten(0, -2)

    def _mix(self, seen: torch.Tensor) -> torch.Tensor:
        seen = seen.reshape(len(seen), *self.mixed_shape)
        return torch.nn.functional.linear(seen.movedim(self._axis, -1), self.squeeze).movedim(-1, self._axis)

    def _broadcast_channels(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None] if len(self.mixed_shape) == 3 else values
