"""Synthetic cover images: colored power-law noise, drawn from a key.

Their spectrum falls off as that of photographs does (D. Field, "Relations between the statistics of natural images and
the response properties of cortical cells", 1987): networks process them as photographs, and no flat area shows a mark.
"""

from pathlib import Path

import numpy as np
from scipy.fft import irfft2, rfft2

from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive
from hf_fingerprint.models import open_image


MIN_SIZE = 224
SPECTRAL_EXPONENT = 1.2  # of the amplitude, as a power of the frequency
MEAN, STD, COLOR_SHARE = 128.0, 48.0, 0.6  # gray levels; the noise of each channel relative to the shared noise
MIN_LEVEL, MAX_LEVEL = 8, 247


def synthetic_cover(key: bytes, index: int, size: int = MIN_SIZE) -> np.ndarray:
    """A synthetic cover image.

    Args:
        key (`bytes`): 32 bytes.
        index (`int`): the number of the cover, of those that the key has.
        size (`int`, *optional*, defaults to 224): its height and width, at least 224.

    Returns:
        `np.ndarray` of shape `(size, size, 3)`: `uint8`.

    Raises:
        [`CodeError`]: if the size is below 224.
    """
    if size < MIN_SIZE:
        raise CodeError(f"A cover of {size} pixels is too small: choose {MIN_SIZE} or more.")
    stream = Stream(derive(key, "cover", str(index)))
    shared, *channel_noise = (_power_law_noise(stream, size) for _ in range(4))
    channels = np.stack([shared + COLOR_SHARE * each for each in channel_noise], -1) / np.hypot(1, COLOR_SHARE)
    return np.clip(np.rint(MEAN + STD * channels), MIN_LEVEL, MAX_LEVEL).astype(np.uint8)


def load_image(path: Path) -> np.ndarray:
    """The pixels of an image file, `(height, width, 3)`, `uint8`, in the orientation that its EXIF data gives.

    Raises:
        [`FingerprintError`]: if it can't be read as an image.
    """
    return np.asarray(open_image(path, apply_orientation=True))


def _power_law_noise(stream: Stream, size: int) -> np.ndarray:
    """Noise whose amplitude falls with the frequency: mean 0, standard deviation 1, shape `(size, size)`."""
    noise = stream.take(size * size).reshape(size, size) - 127.5
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    noise_image = irfft2(rfft2(noise) / frequency**SPECTRAL_EXPONENT, (size, size))
    return noise_image / noise_image.std()
