"""The code sent for an image: a few linear combinations of its features, clipped, plus noise.

    z = clip((B x - m) / s) + sigma n

x are the features at the cut, or deeper in the model ([`FrozenSegment`]). B mixes the channels at each position (a 1x1
convolution without bias; for tokens, a matrix), or all features of all positions. m and the scalar s give codes mean 0
and mean square 1. The clip bounds every code's norm. The released model has neither bottleneck nor noise.

n numbers of mean square P with Gaussian noise of variance sigma^2 carry at most n/2 log2(1 + P/sigma^2) bits,
whatever an adversary computes (C. E. Shannon, "Communication in the presence of noise", 1949). How well images can be
reconstructed from these bits is measured in `leakage`.
"""

import math

import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy.frozen_segment import FrozenSegment


_BATCH = 256
MAX_POWER = 2.0  # the largest mean square of a code; few images are clipped


class Bottleneck(torch.nn.Module):
    """The map from features to codes: B, m, s and sigma.

    Args:
        shape (`tuple[int, ...]`): the shape of one image's features, see [`Partition`].
        channels (`int`): the number of channels in a code, per position or, with `flatten_features`, in all.
        sigma (`float`, *optional*, defaults to 0): the noise's standard deviation, in units of a code's.
        flatten_features (`bool`, *optional*, defaults to `False`): mix the features of all positions, so that a code
            has no positions and a few dozen numbers are enough.
        segment ([`FrozenSegment`], *optional*): goes deeper into the model first. Needs `flatten_features`.

    Attributes:
        squeeze (`torch.nn.Parameter` of shape `(channels, features)`): B.
        mixed_shape (`tuple[int, ...]`): the shape of B's input: `shape`, or the number of all (segment) features.

    Raises:
        [`FingerprintError`]: if the bottleneck is wider than the features, sigma is negative or not finite, or a
            segment is given without `flatten_features`.
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
            raise FingerprintError("A segment needs flatten_features=True: its positions differ from the cut's.")
        self.shape, self.flatten_features, self.segment = tuple(shape), flatten_features, segment
        inner = self.shape if segment is None else segment.shape
        self.mixed_shape = (math.prod(inner),) if flatten_features else self.shape
        self._axis = 1 if len(self.mixed_shape) == 3 else -1
        features = self.mixed_shape[0 if len(self.mixed_shape) == 3 else -1]
        if not 1 <= channels <= features:
            raise FingerprintError(f"{channels} channels don't fit {features} features: choose fewer.")
        self.channels = channels
        self.squeeze = torch.nn.Parameter(torch.eye(channels, features), requires_grad=False)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("noise", torch.zeros(()))
        self.sigma = sigma

    def extra_repr(self) -> str:
        parts = f"shape={self.shape}, channels={self.channels}, sigma={self.sigma:.4g}"
        return f"{parts}, flatten_features={self.flatten_features}"

    @property
    def sigma(self) -> float:
        """The noise's standard deviation, in units of a code's."""
        return float(self.noise)

    @sigma.setter
    def sigma(self, sigma: float) -> None:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise FingerprintError(f"sigma must be finite and at least 0, got {sigma}: choose another.")
        self.noise.fill_(sigma)

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of one image's code: that of the features with `channels` channels, or `(channels,)`."""
        mixed = self.mixed_shape
        return (self.channels, *mixed[1:]) if len(mixed) == 3 else (*mixed[:-1], self.channels)

    @property
    def max_norm(self) -> float:
        """The largest norm of a code: `sqrt(2 n)` for n numbers."""
        return math.sqrt(MAX_POWER * math.prod(self.code_shape))

    @property
    def bits_per_image(self) -> float:
        """The most information that one code carries about an image, in bits; infinite without noise."""
        if not self.sigma:
            return math.inf
        return math.prod(self.code_shape) / 2 * math.log2(1 + MAX_POWER / self.sigma**2)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """The codes without noise, clip((B x - m) / s), of shape `(batch, *code_shape)`."""
        code = (self._mix(self.features_in_segment(features)) - self._broadcast_channels(self.centre)) / self.scale
        shrink = (self.max_norm / code.flatten(1).norm(dim=1).clamp_min(1e-12)).clamp_max(1.0)
        return code * shrink.reshape(-1, *(1,) * (code.dim() - 1))

    def send(self, features: torch.Tensor, normal: torch.Tensor | None = None) -> torch.Tensor:
        """The codes with noise, of shape `(batch, *code_shape)`.

        Args:
            features (`torch.Tensor` of shape `(batch, *shape)`): features at the cut.
            normal (`torch.Tensor` of shape `(batch, *code_shape)`, *optional*): standard normal numbers, such as those
                of [`ImageNoise`]; by default new random ones, which average out if an image is sent many times.
        """
        return self.with_noise(self.encode(features), normal)

    def with_noise(self, code: torch.Tensor, normal: torch.Tensor | None = None) -> torch.Tensor:
        """A code plus noise; see [`Bottleneck.send`] for `normal`."""
        return code + self.noise * (torch.randn_like(code) if normal is None else normal)

    def features_in_segment(self, features: torch.Tensor) -> torch.Tensor:
        """The features that B is applied to: those at the cut, or those at the end of the segment."""
        return features if self.segment is None else self.segment(features)

    @torch.no_grad()
    def fit_normalization(self, features: torch.Tensor) -> None:
        """Sets m and s from the features of public images. B alone decides how power is shared among channels."""
        mixed = torch.cat([self._mix(self.features_in_segment(part)) for part in features.split(_BATCH)])
        axes = [axis for axis in range(mixed.dim()) if axis != self._axis % mixed.dim()]
        self.centre.copy_(mixed.mean(axes))
        self.scale.copy_(mixed.var(axes).mean().sqrt().clamp_min(1e-6))

    @torch.no_grad()
    def init_principal_components(self, features: torch.Tensor) -> None:
        """Sets B to the leading principal axes of public images' features, whitened, and sets m and s. No other linear
        map to as many channels loses less."""
        rows = self.rows(self.features_in_segment(features))
        rows = rows - rows.mean(0)
        powers, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
        leading = slice(-self.channels, None)
        self.squeeze.copy_((axes[:, leading] / powers[leading].clamp_min(1e-12).sqrt()).T)
        self.fit_normalization(features)

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """Features as rows for B: one row per image, or per position of each image."""
        if self.flatten_features:
            return features.flatten(1)
        return features.reshape(len(features), *self.mixed_shape).movedim(self._axis, -1).flatten(0, -2)

    def _mix(self, seen: torch.Tensor) -> torch.Tensor:
        seen = seen.reshape(len(seen), *self.mixed_shape)
        return torch.nn.functional.linear(seen.movedim(self._axis, -1), self.squeeze).movedim(-1, self._axis)

    def _broadcast_channels(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None] if len(self.mixed_shape) == 3 else values
