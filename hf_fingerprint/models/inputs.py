"""Inputs to measure a model on: the user's images, or synthetic ones with the spectrum of photographs.

They are made or read in batches, so memory does not grow with their number.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.models.built import BuiltModel
from hf_fingerprint.models.images import open_image
from hf_fingerprint.printable import printable


if TYPE_CHECKING:
    import torch


DEFAULT_IMAGES = 32
BLOCK_IMAGES = 32  # synthetic images drawn together
REFERENCE_PIXELS = 224 * 224
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
_T = TypeVar("_T")


class LazyImages:
    """Inputs of a model, made or read on demand, identical each time.

    Args:
        size (`tuple[int, int, int]`): channels, height and width.
        blocks (sequence): `(count, make)` for each block: the number of images, and a callable that returns them as
            `float32` of shape `(count, channels, height, width)`.
    """

    def __init__(self, size: tuple[int, int, int], blocks: "Sequence[tuple[int, Callable[[], torch.Tensor]]]"):
        self.size, self._blocks = size, list(blocks)

    @classmethod
    def of(cls, images: "torch.Tensor") -> "LazyImages":
        """Wraps images in memory, `(n, channels, height, width)`."""
        channels, height, width = images.shape[1:]
        return cls((channels, height, width), [(len(images), lambda: images)])

    def __len__(self) -> int:
        return sum(count for count, _ in self._blocks)

    @property
    def pixels(self) -> int:
        """Number of pixels of one image."""
        return self.size[1] * self.size[2]

    def batches(self, count: int) -> "Iterator[torch.Tensor]":
        """Yields all images in order, in batches of `count`; the last may be smaller."""
        import torch

        kept: list[torch.Tensor] = []
        needed = count
        for _, make in self._blocks:
            for part in _split_block(make(), needed, count):
                kept.append(part)
                needed -= len(part)
                if not needed:
                    yield kept[0] if len(kept) == 1 else torch.cat(kept)
                    kept, needed = [], count
        if kept:
            yield torch.cat(kept)


def fit_batch_size(pixels: int, batch_size: int) -> int:
    """The batch size for images of so many pixels: less than `batch_size` beyond 224 x 224, to bound activations."""
    return max(1, min(batch_size, batch_size * REFERENCE_PIXELS // pixels))


def image_files(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted.

    Raises:
        [`FingerprintError`]: if there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FingerprintError(f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}): give a folder of images.")
    return paths


def user_images(folder: Path, model: BuiltModel, count: int = DEFAULT_IMAGES) -> LazyImages:
    """Preprocessed images from a folder and its subfolders, evenly picked.

    Returns:
        [`LazyImages`]: at most `count`. Iterating raises [`FingerprintError`] for an unreadable image.

    Raises:
        [`FingerprintError`]: if there are none.
    """
    return _from_files(_pick_evenly(image_files(folder), count), model)


def split_user_images(
    folder: Path, model: BuiltModel, first_count: int, second_count: int
) -> tuple[LazyImages, LazyImages]:
    """Two disjoint sets of images from a folder, evenly picked. They share the file if the folder has only one.

    The second set is in a fixed random order, so that its first images represent all.

    Args:
        folder (`Path`): see [`user_images`].
        model ([`BuiltModel`]): for its preprocessing.
        first_count (`int`): maximum size of the first set, which takes at most half of the files.
        second_count (`int`): maximum size of the second set.
    """
    paths = image_files(folder)
    first = _pick_evenly(paths, min(first_count, (len(paths) + 1) // 2))
    second = _pick_evenly(sorted(set(paths) - set(first)) or paths, second_count)
    np.random.default_rng(0).shuffle(second)
    return _from_files(first, model), _from_files(second, model)


def lazy_synthetic_images(model: BuiltModel, count: int, seed: int = 0) -> LazyImages:
    """Any number of [`synthetic_images`], drawn in blocks of 32. Sets of different seeds are disjoint."""
    starts = range(0, count, BLOCK_IMAGES)
    seeds = [seed if start == 0 else (seed, start // BLOCK_IMAGES) for start in starts]
    counts = [min(BLOCK_IMAGES, count - start) for start in starts]
    makers = [partial(synthetic_images, model, *each) for each in zip(counts, seeds, strict=True)]
    return LazyImages(model.size, list(zip(counts, makers, strict=True)))


def synthetic_images(
    model: BuiltModel, count: int = DEFAULT_IMAGES, seed: int | tuple[int, ...] = 0
) -> "torch.Tensor":
    """Random images with random colors and contrasts, in the model's normalization.

    Their amplitude falls as one over frequency, like that of photographs (D. J. Field, J. Opt. Soc. Am. A 4 (1987)).

    Returns:
        `torch.Tensor` of shape `(count, channels, height, width)`, the same for the same seed and count.
    """
    import torch

    channels, height, width = model.size
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum = 1 / np.maximum(frequency, 1 / max(height, width))
    noise = rng.standard_normal((count, channels, height, width))
    common = rng.uniform(0.3, 0.95, (count, 1, 1, 1))
    colors, contrasts = rng.uniform(0.2, 0.8, (count, channels, 1, 1)), rng.uniform(0.1, 0.3, (count, 1, 1, 1))
    mean, std = (np.array(values)[: channels or 1, None, None] for values in (model.mean, model.std))
    images = np.empty(noise.shape, np.float32)
    for i in range(count):  # one by one: the rest of the arithmetic takes ten times an image's memory
        mixed = np.sqrt(common[i]) * noise[i, :1] + np.sqrt(1 - common[i]) * noise[i]
        image = np.fft.irfft2(np.fft.rfft2(mixed) * spectrum, s=(height, width))
        image = (image - image.mean((1, 2), keepdims=True)) / image.std()
        images[i] = (np.clip(colors[i] + contrasts[i] * image, 0, 1) - mean) / std
    return torch.from_numpy(images)


def _pick_evenly(items: Sequence[_T], count: int) -> list[_T]:
    return [items[int(i)] for i in sorted({int(i) for i in np.linspace(0, len(items) - 1, min(count, len(items)))})]


def _from_files(paths: Sequence[Path], model: BuiltModel) -> LazyImages:
    return LazyImages(model.size, [(1, partial(_read_image, path, model)) for path in paths])


def _read_image(path: Path, model: BuiltModel) -> "torch.Tensor":
    return prepare_image(path, model)[None]


def prepare_image(source: Path | bytes, model: BuiltModel, name: str | None = None) -> "torch.Tensor":
    """An image, preprocessed for a model, `(channels, height, width)`.

    Args:
        source (`Path` or `bytes`): a file, or its content.
        model ([`BuiltModel`]): for its preprocessing.
        name (`str`, *optional*): the image's name in errors; by default the file's path.

    Raises:
        [`FingerprintError`]: if it can't be read or preprocessed.
    """
    image = open_image(source, "RGB" if model.size[0] == 3 else "L", name)
    try:
        prepared: torch.Tensor = model.preprocess(image)
    except Exception as error:  # processors raise anything
        problem = f"can't be prepared for the model ({type(error).__name__})"
        where = printable(str(source)) if name is None else name
        raise FingerprintError(f"{where} {problem}: remove or replace it.") from None
    return prepared


def _split_block(block: "torch.Tensor", first: int, count: int) -> "Iterator[torch.Tensor]":
    """Splits a block into `first` images, then `count` at a time."""
    yield block[:first]
    if len(block) > first:
        yield from block[first:].split(count)
