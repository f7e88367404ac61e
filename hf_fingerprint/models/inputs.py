"""Inputs to calibrate on: the user's images, or synthetic ones with the spectrum of photographs."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models.built import BuiltModel


if TYPE_CHECKING:
    import torch


IMAGES = 32
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and the folders in it, by their names' endings, sorted.

    Raises:
        [`FingerprintError`]: if there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FingerprintError(f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}): give a folder of images.")
    return paths


def user_images(folder: Path, model: BuiltModel, count: int = IMAGES) -> "torch.Tensor":
    """Images from a folder and the folders in it, evenly picked, through the model's own preprocessing.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`, batch at most `count`.

    Raises:
        [`FingerprintError`]: if there are none, or one can't be read.
    """
    import torch
    from PIL import Image, UnidentifiedImageError

    paths = image_files(folder)
    batch = []
    for index in sorted({int(i) for i in np.linspace(0, len(paths) - 1, min(count, len(paths)))}):
        try:
            with Image.open(paths[index]) as image:
                batch.append(model.preprocess(image.convert("RGB" if model.size[0] == 3 else "L")))
        except (UnidentifiedImageError, OSError):
            raise FingerprintError(f"{paths[index]} can't be read as an image: remove or replace it.") from None
    return torch.stack(batch)


def synthetic_images(model: BuiltModel, count: int = IMAGES, seed: int = 0) -> "torch.Tensor":
    """Random images whose amplitude falls as one over frequency, as that of photographs does (D. J. Field, J. Opt.
    Soc. Am. A 4 (1987)), with random colours and contrasts, in the model's normalisation.

    Returns:
        `torch.Tensor` of shape `(count, channels, height, width)`, the same for the same seed.
    """
    import torch

    channels, height, width = model.size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    fall = 1 / np.maximum(frequency, 1 / max(height, width))
    noise = rng.standard_normal((count, channels, height, width))
    common = rng.uniform(0.3, 0.95, (count, 1, 1, 1))
    noise = np.sqrt(common) * noise[:, :1] + np.sqrt(1 - common) * noise
    images = np.fft.irfft2(np.fft.rfft2(noise) * fall, s=(height, width))
    images = (images - images.mean((2, 3), keepdims=True)) / images.std((1, 2, 3), keepdims=True)
    images = rng.uniform(0.2, 0.8, (count, channels, 1, 1)) + rng.uniform(0.1, 0.3, (count, 1, 1, 1)) * images
    mean, std = (np.array(values)[: channels or 1, None, None] for values in (model.mean, model.std))
    return torch.from_numpy(((np.clip(images, 0, 1) - mean) / std).astype(np.float32))
