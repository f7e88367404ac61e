"""Passphrase-protected age files that open fast, built by hand from the format's specification.

age makes a passphrase slow on purpose, a second or more each time. The file says how slow, so one that says "hardly at
all" opens in a millisecond with the real library. Never for anything but tests.
"""

import base64
import hmac
import os

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt


_LOG_WORK = 2


def lock_quickly(identity: str, passphrase: str) -> bytes:
    """Returns the same as `encrypt_identity`, but fast to open.

    Args:
        identity (`str`): the identity in age's spelling.
        passphrase (`str`): as long as one likes: it guards nothing.
    """
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    work = Scrypt(salt=b"age-encryption.org/v1/scrypt" + salt, length=32, n=1 << _LOG_WORK, r=8, p=1)
    wrapped = ChaCha20Poly1305(work.derive(passphrase.encode())).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> scrypt %s %d\n%s\n---" % (_base64(salt), _LOG_WORK, _base64(wrapped))
    mac = hmac.digest(_derive(file_key, b"", b"header"), header, "sha256")
    only_chunk = bytes(11) + b"\x01"
    content = ChaCha20Poly1305(_derive(file_key, nonce, b"payload")).encrypt(
        only_chunk, identity.encode() + b"\n", None
    )
    return header + b" " + _base64(mac) + b"\n" + nonce + content


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)
