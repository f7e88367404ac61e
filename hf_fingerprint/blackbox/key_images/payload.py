"""The error-correcting code of key images: Reed-Solomon over bytes.

Five parity bytes for every two bytes of payload correct errors in a third of all bytes. With more errors, the least
confident bytes are marked as erasures, which need half as much parity.
"""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.errors import CodeError


if TYPE_CHECKING:
    import reedsolo

DEFAULT_BITS, MAX_BITS = 304, 576
PARITY_RATIO = 2.5  # parity bytes for each byte of the payload
ERASURE_SHARES = (0.0, 0.25, 0.5)  # of the parity, one attempt after another
_MAX_CODEWORD_BYTES = 255


def coded_bits(bits: int = DEFAULT_BITS) -> int:
    """The length of a payload of `bits` with its parity, in bits.

    Raises:
        [`CodeError`]: if there is no code for this length.
    """
    if bits % 8 or not 8 <= bits <= MAX_BITS:
        raise CodeError(f"An image can't carry {bits} bits: choose a multiple of 8 from 8 to {MAX_BITS}.")
    return bits + 8 * _parity(bits)


def encode(payload: bytes) -> np.ndarray:
    """The signs of a payload and its parity.

    Args:
        payload (`bytes`): 1 to 72 bytes.

    Returns:
        `np.ndarray` of shape `(coded_bits,)`: `float64`, +1 for a 0 and -1 for a 1, the highest bit of a byte first.
    """
    coded_bits(8 * len(payload))
    coded = np.frombuffer(bytes(_codec(8 * len(payload)).encode(payload)), np.uint8)
    return 1 - 2.0 * np.unpackbits(coded)


def decode_payload(signs: np.ndarray, bits: int = DEFAULT_BITS) -> bytes | None:
    """The payload of noisy signs, or `None` if they have more errors than the parity can correct.

    Args:
        signs (`np.ndarray` of shape `(coded_bits,)`): positive for 0, negative for 1, with the confidence as
            magnitude.
        bits (`int`, *optional*, defaults to 304): the length of the payload.
    """
    import reedsolo

    coded_bits(bits)
    if not signs.any():  # the code would read it as zeros
        return None
    received = np.packbits(signs < 0).tobytes()
    least_confident = np.argsort(np.abs(signs).reshape(-1, 8).min(1), kind="stable")
    for share in ERASURE_SHARES:
        erased = least_confident[: int(share * _parity(bits))].tolist()
        try:
            return bytes(_codec(bits).decode(received, erase_pos=erased)[0])
        except reedsolo.ReedSolomonError:
            continue
    return None


def _parity(bits: int) -> int:
    return min(int(PARITY_RATIO * bits / 8), _MAX_CODEWORD_BYTES - bits // 8)


def _codec(bits: int) -> "reedsolo.RSCodec":
    import reedsolo

    return reedsolo.RSCodec(_parity(bits))
