"""Noise that is fixed for each image.

New noise at each send would average out over epochs. An image's noise therefore depends only on its holder's secret
and its pixels: it is the same at every send, in every order and every run.
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
        secret (`bytes`): 32 bytes from `hf_fingerprint.keys.new_secret()`. Keep them private: they undo the noise.

    Raises:
        [`FingerprintError`]: if the secret isn't 32 bytes long.
    """

    def __init__(self, secret: bytes):
        if len(secret) != SECRET_BYTES:
            raise FingerprintError(f"A secret needs {SECRET_BYTES} bytes, got {len(secret)}: call new_secret().")
        self._secret = secret

    def __repr__(self) -> str:
        return "ImageNoise()"

    def draw(self, images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The noise of some images, `float32` of shape `(batch, *shape)`.

        Args:
            images (`torch.Tensor` of shape `(batch, channels, height, width)`): the images.
            shape (`tuple[int, ...]`): the shape of one image's code.
        """
        pixels = images.detach().cpu().contiguous().numpy()
        return torch.stack([self._draw_one(image.tobytes(), shape) for image in pixels]).to(images.device)

    def _draw_one(self, pixels: bytes, shape: tuple[int, ...]) -> torch.Tensor:
        stream = Stream(derive(self._secret, "image_noise", hashlib.sha256(pixels).hexdigest()))
        count = math.prod(shape)
        radius, angle = (stream.take(8 * count).view("<u4").astype(np.float64).reshape(2, count) + 0.5) / 2**32
        normal = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)  # G. Box, M. Muller, 1958
        return torch.from_numpy(normal.astype(np.float32)).reshape(shape)
