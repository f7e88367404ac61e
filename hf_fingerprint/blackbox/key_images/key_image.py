"""Key images: covers that carry a recipient's fingerprint invisibly, readable with the cover.

The coded bits are spread over keyed positions among the low frequencies of the image's cosine transform (I. Cox, J.
Kilian, F. Leighton, T. Shamoon, "Secure spread spectrum watermarking for multimedia", 1997), which JPEG and resizing
preserve. The mark is stronger where the cover is textured, and as strong as the limits on PSNR and SSIM allow. Reading
first subtracts the cover, scaled at each frequency to what is left of it: resizing blurs the cover too.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import LinearOperator, lsmr

from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS, coded_bits, decode, encode
from hf_fingerprint.blackbox.trigger_set.covers import MIN_SIZE
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive


MIN_PSNR, MIN_SSIM = 38.0, 0.97  # dB
BAND = 0.02, 0.36  # of the Nyquist frequency
MASK_SIGMA, MASK_OFFSET = 4.0, 30.0  # pixels; gray levels squared
FADING_SIGMA, MIN_POWER = 6.0, 1e-9  # frequencies over which fading is averaged
LUMINANCE = np.array([0.299, 0.587, 0.114])
BISECTION_STEPS, MAX_STRENGTH, MAX_ITERATIONS = 12, 16.0, 30
JPEG_QUALITY = 75  # that a mark must survive


@dataclass(frozen=True)
class KeyImage:
    """An image that carries a fingerprint.

    Attributes:
        image (`np.ndarray` of shape `(height, width, 3)`): `uint8`.
        psnr, ssim (`float`): its PSNR, dB, and SSIM to the cover.
    """

    image: np.ndarray
    psnr: float
    ssim: float


def derive_fingerprint(key: bytes, bits: int = DEFAULT_BITS) -> bytes:
    """The fingerprint of a copy key, `bits / 8` pseudo-random bytes, the same on all key images of a recipient."""
    coded_bits(bits)
    return Stream(derive(key, "fingerprint")).take(bits // 8).tobytes()


def make_key_image(
    cover: np.ndarray, payload: bytes, key: bytes, index: int, psnr: float = MIN_PSNR, ssim: float = MIN_SSIM
) -> KeyImage:
    """Embeds a payload in a cover, as strongly as the limits on visibility allow.

    Args:
        cover (`np.ndarray` of shape `(height, width, 3)`): `uint8`, at least 224 pixels in height and width.
        payload (`bytes`): see [`derive_fingerprint`].
        key (`bytes`): 32 bytes, for the positions of the bits.
        index (`int`): the number of the image, of those that the key has.
        psnr (`float`, *optional*, defaults to 38): the lowest peak signal-to-noise ratio, dB.
        ssim (`float`, *optional*, defaults to 0.97): the lowest structural similarity.

    Raises:
        [`CodeError`]: if the cover is no image of this kind, or has no capacity for a mark that survives compression.
    """
    from skimage.metrics import peak_signal_noise_ratio

    check_cover(cover)
    coded = encode(payload)
    pattern = _SpreadSpectrum(cover, key, index, len(coded)).write(coded)
    pattern = (pattern / pattern.std())[..., None]

    def marked(strength: float) -> np.ndarray:
        return np.clip(np.rint(cover + strength * pattern), 0, 255).astype(np.uint8)

    low, high = 0.0, MAX_STRENGTH
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        image = marked(middle)
        too_visible = (image != cover).any() and peak_signal_noise_ratio(cover, image) < psnr
        low, high = (low, middle) if too_visible or similarity(cover, image) < ssim else (middle, high)
    image = marked(low)
    if extract_payload(_jpeg_round_trip(image), cover, key, index, 8 * len(payload)) != payload:
        limits = f"JPEG {JPEG_QUALITY} at {psnr} dB and SSIM {ssim}: choose a cover with more texture"
        raise CodeError(f"Cover {index} has no capacity for {8 * len(payload)} bits that survive {limits}.")
    return KeyImage(image, float(peak_signal_noise_ratio(cover, image)), similarity(cover, image))


def extract_payload(
    image: np.ndarray, cover: np.ndarray, key: bytes, index: int, bits: int = DEFAULT_BITS
) -> bytes | None:
    """The payload of a key image, which may be compressed or resized.

    Args:
        image, cover (`np.ndarray` of shape `(height, width, 3)`): `uint8`; the image, of any size, and its cover.
        key, index: as in [`make_key_image`].
        bits (`int`, *optional*, defaults to 304): the length of the payload.

    Returns:
        `bytes` or `None`: `None` if too much of the payload is lost.
    """
    check_cover(cover)
    image_luminance = _resize(image, cover.shape) @ LUMINANCE
    spread = _SpreadSpectrum(cover, key, index, coded_bits(bits))
    for resample in (None, "NEAREST", "BOX"):
        resampled = cover if resample is None else _downsample_and_restore(cover, resample)
        payload = decode(spread.read(_remove_cover(image_luminance, resampled @ LUMINANCE)), bits)
        if payload is not None:
            return payload
    return None


def similarity(cover: np.ndarray, image: np.ndarray) -> float:
    """SSIM of two images `(height, width, 3)`, `uint8`, with the parameters of Z. Wang et al. ("Image quality
    assessment: from error visibility to structural similarity", 2004)."""
    from skimage.metrics import structural_similarity

    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(cover, image, channel_axis=2, data_range=255, **gaussian))


def check_cover(cover: np.ndarray) -> None:
    """Checks that an image can carry a mark.

    Raises:
        [`CodeError`]: if it is too small, or not an image of 8 bits and 3 channels.
    """
    if cover.dtype != np.uint8 or cover.ndim != 3 or cover.shape[2] != 3:
        found = f"A cover of {cover.dtype} and shape {cover.shape}"
        raise CodeError(f"{found} is not an image: give (height, width, 3) uint8.")
    height, width = cover.shape[:2]
    if min(height, width) < MIN_SIZE:
        raise CodeError(f"A cover of {height} by {width} pixels is too small: choose {MIN_SIZE} or more.")


class _SpreadSpectrum:
    """The linear map from signs `(count,)` to a pattern `(height, width)`, scaled by the cover's texture. Each bit has
    several keyed positions in the transform, with keyed signs."""

    def __init__(self, cover: np.ndarray, key: bytes, index: int, count: int):
        height, width = self._shape = cover.shape[:2]
        frequency = np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width)
        band = np.flatnonzero((frequency > BAND[0]) & (frequency < BAND[1]))
        stream = Stream(derive(key, "key_image", str(index)))
        order = np.argsort(stream.take(8 * len(band)).view("<u8"), kind="stable")
        repeats = len(band) // count
        signs = 1 - 2.0 * np.unpackbits(stream.take(-(-repeats * count // 8)))[: repeats * count]
        self._positions = band[order[: repeats * count]].reshape(repeats, count)
        self._signs = signs.reshape(repeats, count)
        self._texture_mask = _texture_mask(cover)

    def write(self, coded: np.ndarray) -> np.ndarray:
        """The pattern of the signs `coded`."""
        transform = np.zeros(self._shape)
        transform.reshape(-1)[self._positions] = self._signs * coded
        return self._texture_mask * idctn(transform, norm="ortho")

    def read(self, pattern: np.ndarray) -> np.ndarray:
        """The signs of a pattern by least squares, as the texture mask makes the bits overlap."""

        def adjoint(image: np.ndarray) -> np.ndarray:
            transform = dctn(self._texture_mask * image.reshape(self._shape), norm="ortho")
            return (self._signs * transform.reshape(-1)[self._positions]).sum(0)

        shape = (pattern.size, self._positions.shape[1])
        spread = LinearOperator(shape, lambda coded: self.write(coded.reshape(-1)).reshape(-1), adjoint, dtype=float)
        return lsmr(spread, pattern.reshape(-1), maxiter=MAX_ITERATIONS)[0]


def _texture_mask(cover: np.ndarray) -> np.ndarray:
    """The local standard deviation of the luminance, scaled to a root mean square of 1, `(height, width)`."""
    luminance = cover @ LUMINANCE
    variance = gaussian_filter(luminance**2, MASK_SIGMA) - gaussian_filter(luminance, MASK_SIGMA) ** 2
    texture = np.sqrt(np.maximum(variance, 0) + MASK_OFFSET)
    return texture / np.sqrt(np.square(texture).mean())


def _remove_cover(image: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """An image minus its cover, scaled at each frequency to what is left of it; both are `(height, width)`."""
    image_spectrum, cover_spectrum = dctn(image, norm="ortho"), dctn(cover, norm="ortho")
    power = np.maximum(gaussian_filter(cover_spectrum**2, FADING_SIGMA), MIN_POWER)
    gain = gaussian_filter(image_spectrum * cover_spectrum, FADING_SIGMA) / power
    return idctn(image_spectrum - gain * cover_spectrum, norm="ortho")


def _downsample_and_restore(cover: np.ndarray, resample: str) -> np.ndarray:
    """A cover halved in size and restored, with the aliasing of a simple resampling method."""
    return _resize(_resize(cover, (cover.shape[0] // 2, cover.shape[1] // 2), resample), cover.shape)


def _resize(image: np.ndarray, shape: tuple[int, ...], resample: str = "BICUBIC") -> np.ndarray:
    from PIL import Image

    if image.shape[:2] == shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling[resample]))


def _jpeg_round_trip(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG_QUALITY)
    return np.asarray(Image.open(file))
