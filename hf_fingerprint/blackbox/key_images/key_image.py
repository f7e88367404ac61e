"""Key images: covers that carry a recipient's fingerprint, invisibly, and give it back to who has the cover.

The coded bits are spread over keyed places among the low frequencies of the whole image's cosine transform (I. Cox, J.
Kilian, F. Leighton, T. Shamoon, "Secure spread spectrum watermarking for multimedia", 1997), which JPEG and resizing
leave alone, and drawn stronger where the cover is busy. The strength is the largest that keeps PSNR and SSIM. Reading
takes the cover off first, frequency by frequency as far as it is still there, since whoever resizes an image blurs the
cover too.
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
MASK_SIGMA, MASK_OFFSET = 4.0, 30.0  # pixels around, grey levels squared
FADING_SIGMA, MIN_POWER = 6.0, 1e-9  # frequencies that fade alike
LUMINANCE = np.array([0.299, 0.587, 0.114])
BISECTION_STEPS, MAX_STRENGTH, MAX_ITERATIONS = 12, 16.0, 30
JPEG_QUALITY = 75  # of the JPEG that a mark must outlast


@dataclass(frozen=True)
class KeyImage:
    """An image that carries a fingerprint.

    Attributes:
        image (`np.ndarray` of shape `(height, width, 3)`): `uint8`.
        psnr (`float`): its distance from the cover, dB.
        ssim (`float`): its likeness to the cover.
    """

    image: np.ndarray
    psnr: float
    ssim: float


def derive_fingerprint(key: bytes, bits: int = DEFAULT_BITS) -> bytes:
    """The fingerprint of a recipient's copy key: pseudo-random, the same on all of the recipient's key images.

    Args:
        key (`bytes`): the copy key, 32 bytes.
        bits (`int`, *optional*, defaults to 304): how many.

    Returns:
        `bytes`: `bits / 8` of them.
    """
    coded_bits(bits)
    return Stream(derive(key, "fingerprint")).take(bits // 8).tobytes()


def make_key_image(
    cover: np.ndarray, payload: bytes, key: bytes, index: int, psnr: float = MIN_PSNR, ssim: float = MIN_SSIM
) -> KeyImage:
    """Puts a payload into a cover, as strongly as the eye allows.

    Args:
        cover (`np.ndarray` of shape `(height, width, 3)`): `uint8`, at least 224 pixels either way.
        payload (`bytes`): what to carry, as [`derive_fingerprint`] gives it.
        key (`bytes`): 32 bytes; where the bits lie hangs on it.
        index (`int`): which of the key's images this is.
        psnr (`float`, *optional*, defaults to 38): the least peak signal-to-noise ratio, dB.
        ssim (`float`, *optional*, defaults to 0.97): the least structural similarity.

    Raises:
        [`CodeError`]: if the cover is too small, no picture of 8 bits and 3 channels, or has no room for a mark that
            outlasts compression.
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
        raise CodeError(
            f"Cover {index} has no room for {8 * len(payload)} bits that outlast JPEG {JPEG_QUALITY} at {psnr} dB and SSIM "
            f"{ssim}: choose a busier cover."
        )
    return KeyImage(image, float(peak_signal_noise_ratio(cover, image)), similarity(cover, image))


def extract_payload(
    image: np.ndarray, cover: np.ndarray, key: bytes, index: int, bits: int = DEFAULT_BITS
) -> bytes | None:
    """The payload of a key image that may have been compressed or resized since.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`): `uint8`, of any size.
        cover (`np.ndarray` of shape `(height, width, 3)`): the cover it was made from.
        key, index: as it was made with.
        bits (`int`, *optional*, defaults to 304): of the payload.

    Returns:
        `bytes` or `None`: `None` if too much of it is lost.
    """
    check_cover(cover)
    image_spectrum = _resize(image, cover.shape) @ LUMINANCE
    spread = _SpreadSpectrum(cover, key, index, coded_bits(bits))
    for resample in (None, "NEAREST", "BOX"):
        cover_spectrum = cover if resample is None else _downsample_and_restore(cover, resample)
        if (
            payload := decode(spread.read(_remove_cover(image_spectrum, cover_spectrum @ LUMINANCE)), bits)
        ) is not None:
            return payload
    return None


def similarity(cover: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity of two images `(height, width, 3)`, `uint8`, as Z. Wang et al. measure it ("Image quality
    assessment: from error visibility to structural similarity", 2004)."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            cover,
            image,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def check_cover(cover: np.ndarray) -> None:
    """Refuses what can't carry a mark.

    Raises:
        [`CodeError`]: if the cover is too small, or no picture of 8 bits and 3 channels.
    """
    if cover.dtype != np.uint8 or cover.ndim != 3 or cover.shape[2] != 3:
        raise CodeError(
            f"A cover of {cover.dtype} and shape {cover.shape} is no picture: give (height, width, 3) uint8."
        )
    if min(cover.shape[:2]) < MIN_SIZE:
        raise CodeError(
            f"A cover of {cover.shape[0]} by {cover.shape[1]} pixels is too small: choose {MIN_SIZE} or more."
        )


class _SpreadSpectrum:
    """Coded bits spread over an image: the linear map from signs `(count,)` to a pattern `(height, width)`.

    Each bit lies at several keyed places of the transform with keyed signs; the pattern is drawn as strongly as the
    cover is busy.
    """

    def __init__(self, cover: np.ndarray, key: bytes, index: int, count: int):
        height, width = self._shape = cover.shape[:2]
        frequency = np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width)
        band = np.flatnonzero((frequency > BAND[0]) & (frequency < BAND[1]))
        stream = Stream(derive(key, "key_image", str(index)))
        order = np.argsort(stream.take(8 * len(band)).view("<u8"), kind="stable")
        each = len(band) // count
        signs = 1 - 2.0 * np.unpackbits(stream.take(-(-each * count // 8)))[: each * count]
        self._places, self._signs = band[order[: each * count]].reshape(each, count), signs.reshape(each, count)
        self._texture_mask = _texture_mask(cover)

    def write(self, coded: np.ndarray) -> np.ndarray:
        """The pattern of some signs."""
        transform = np.zeros(self._shape)
        transform.reshape(-1)[self._places] = self._signs * coded
        return self._texture_mask * idctn(transform, norm="ortho")

    def read(self, pattern: np.ndarray) -> np.ndarray:
        """The signs that come nearest to a pattern, by least squares: where a cover is busy here and flat there, bits
        run into one another."""

        def adjoint(image: np.ndarray) -> np.ndarray:
            transform = dctn(self._texture_mask * image.reshape(self._shape), norm="ortho")
            return (self._signs * transform.reshape(-1)[self._places]).sum(0)

        shape = (pattern.size, self._places.shape[1])
        spread = LinearOperator(shape, lambda coded: self.write(coded.reshape(-1)).reshape(-1), adjoint, dtype=float)
        return lsmr(spread, pattern.reshape(-1), maxiter=MAX_ITERATIONS)[0]


def _texture_mask(cover: np.ndarray) -> np.ndarray:
    """How much the luminance varies around each pixel, root mean square 1, `(height, width)`."""
    luminance = cover @ LUMINANCE
    variance = gaussian_filter(luminance**2, MASK_SIGMA) - gaussian_filter(luminance, MASK_SIGMA) ** 2
    texture = np.sqrt(np.maximum(variance, 0) + MASK_OFFSET)
    return texture / np.sqrt(np.square(texture).mean())


def _remove_cover(image: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """An image less as much of its cover as is left in it, frequency by frequency: `(height, width)` of both."""
    image_spectrum, cover_spectrum = dctn(image, norm="ortho"), dctn(cover, norm="ortho")
    left = gaussian_filter(image_spectrum * cover_spectrum, FADING_SIGMA) / np.maximum(
        gaussian_filter(cover_spectrum**2, FADING_SIGMA), MIN_POWER
    )
    return idctn(image_spectrum - left * cover_spectrum, norm="ortho")


def _downsample_and_restore(cover: np.ndarray, resample: str) -> np.ndarray:
    """A cover as resizing leaves it that smooths too little, or in squares: with patterns that it didn't have."""
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
