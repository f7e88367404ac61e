"""All key derivations, versioned.

A copy issued today must trace in ten years, so golden vectors in ``tests/test_keys.py`` freeze every function here. To
change a derivation, add a new version and keep the old one.

* `derive`: HKDF-SHA256 (RFC 5869), one label and one context for each purpose.
* `Stream`: AES-256 in counter mode over zeros, the source of all pseudo-random bits.
* `commitment`: SHA-256 over a copy key, its recipient and the copy's content hash.
"""

import hashlib
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


SECRET_BYTES = 32
_DOMAIN = b"hf_fingerprint/1/"
_AES_BLOCK = 16
_ZEROS = memoryview(bytes(1 << 20))


def new_secret() -> bytes:
    """32 random bytes from the operating system, for a model secret or a copy key."""
    return secrets.token_bytes(SECRET_BYTES)


def derive(secret: bytes, label: str, context: str = "") -> bytes:
    """A 32-byte key for one purpose.

    Args:
        secret (`bytes`): model secret or copy key, 32 bytes.
        label (`str`): the purpose, such as `"signs"`.
        context (`str`, *optional*): what the key belongs to, such as a tensor's name.

    Returns:
        `bytes`: HKDF-SHA256 with an empty salt and info `hf_fingerprint/1/<label>\\0<context>`.
    """
    info = _DOMAIN + label.encode() + b"\0" + context.encode()
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(secret)


class Stream:
    """Pseudo-random bytes of a key: AES-256-CTR over zeros from counter 0, taken in order.

    Args:
        key (`bytes`): 32 bytes from [`derive`].
        start (`int`, *optional*, defaults to 0): number of leading bytes to skip, at no cost.
    """

    def __init__(self, key: bytes, start: int = 0):
        block, rest = divmod(start, _AES_BLOCK)
        counter = block.to_bytes(_AES_BLOCK, "big")
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
        if rest:
            self._encryptor.update(bytes(rest))

    def take(self, count: int) -> np.ndarray:
        """Next `count` bytes as a writable `uint8` array of shape `(count,)`."""
        return self.fill(np.empty(count, np.uint8))

    def fill(self, out: np.ndarray) -> np.ndarray:
        """Fills `out`, a contiguous `uint8` array, with the next `len(out)` bytes and returns it."""
        view = memoryview(out)
        for start in range(0, len(out), len(_ZEROS)):
            piece = view[start : start + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(piece)], piece)
        return out


def commitment(copy_key: bytes, recipient: str, content_hash: str) -> str:
    """Commitment to a copy's key and recipient, publishable at once and opened later.

    Args:
        copy_key (`bytes`): 32 bytes that determine the copy's codeword.
        recipient (`str`): recipient name.
        content_hash (`str`): the copy's content hash, hexadecimal.

    Returns:
        `str`: hexadecimal SHA-256 over the domain, the key, the length of the name (8 bytes, big-endian), the name in
        UTF-8 and the 32 bytes of the hash.
    """
    name = recipient.encode()
    digest = hashlib.sha256(_DOMAIN + b"commitment\0")
    digest.update(copy_key + len(name).to_bytes(8, "big") + name + bytes.fromhex(content_hash))
    return digest.hexdigest()
