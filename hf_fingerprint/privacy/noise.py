"""Noise that an image gets once and for all.

Fresh noise at each send would average out over the epochs of a training. So an image's noise hangs on a secret of its
holder and on its pixels alone: sent a thousand times, in whatever order, by whatever run, it looks the same each time.
"""

import hashlib
import math

import numpy as np
import torch

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.keys import SECRET_BYTES, Stream, derive


class ImageNoise:
    """Standard normal numbers for each image, from a secret.

    Args:
        secret (`bytes`): 32 bytes of [`new_secret`](hf_fingerprint.keys), which never leave the holder: with them the
            noise can be taken off.

    Raises:
        [`FingerprintError`]: if the secret isn't 32 bytes long.
    """

    def __init__(self, secret: bytes):
        if len(secret) != SECRET_BYTES:
            raise FingerprintError(f"A holder's secret has {SECRET_BYTES} bytes, not {len(secret)}.")
        self._secret = secret

    def __repr__(self) -> str:
        return "ImageNoise()"

    def draw(self, images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The noise of some images, `float32` of shape `(batch, *shape)`.

        Args:
            images (`torch.Tensor` of shape `(batch, channels, height, width)`): their pixels.
            shape (`tuple[int, ...]`): of one image's code.
        """
        pixels = images.detach().cpu().contiguous().numpy()
        return torch.stack([self._draw_one(image.tobytes(), shape) for image in pixels]).to(images.device)

    def _draw_one(self, pixels: bytes, shape: tuple[int, ...]) -> torch.Tensor:
        stream = Stream(derive(self._secret, "image_noise", hashlib.sha256(pixels).hexdigest()))
        count = math.prod(shape)
        radius, angle = (stream.take(8 * count).view("<u4").astype(np.float64).reshape(2, count) + 0.5) / 2**32
        normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)  # G. Box, M. Muller, 1958
        return torch.from_numpy(normal.astype(np.float32)).reshape(shape)
