"""Passphrase-encrypted age files with a fixed work factor, in the format that the `age` command line reads.

The format is https://age-encryption.org/v1: a header with one `scrypt` stanza, which wraps a file key; an HMAC over
the header; a nonce; and the content, encrypted in chunks of 64 KiB. The primitives come from `cryptography`.

Other age libraries choose scrypt's work factor by timing the machine, so a busy machine makes files whose passphrase
is quick to guess, and refuses files that an idle one made. Here the work factor is constant when sealing, and any
value up to a limit opens.

The content must be shorter than one chunk, which a tracing identity is.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from hf_fingerprint.checkpoints.limits import MAX_LOG_WORK
from hf_fingerprint.errors import PassphraseError


LOG_WORK = 18  # log2 of scrypt's N: 256 MB and about a second per guess
MAX_BYTES = 32 << 10  # of a sealed file: less than a chunk, armor included
_VERSION = b"age-encryption.org/v1"
_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 16, 16
_FINAL_CHUNK_NONCE = bytes(11) + b"\x01"  # STREAM's nonce: chunk 0, and the last one
_HEADER = re.compile(
    rb"(age-encryption\.org/v1\n-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]{0,8})\n([A-Za-z0-9+/]{43})\n---)"
    rb" ([A-Za-z0-9+/]{43})\n"
)
_ARMOR = re.compile(
    rb"\s*-----BEGIN AGE ENCRYPTED FILE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END AGE ENCRYPTED FILE-----\s*"
)


class _Parsed(NamedTuple):
    """The parts of a file: the header that the MAC covers, the stanza's salt, work factor and body, the MAC, and the
    nonce with the ciphertext."""

    header: bytes
    salt: bytes
    log_work: int
    wrapped: bytes
    mac: bytes
    payload: bytes


def seal_with_passphrase(content: bytes, passphrase: str) -> bytes:
    """A passphrase-encrypted age file of a short content, at work factor `LOG_WORK`.

    Raises:
        [`PassphraseError`]: if the passphrase is empty.
    """
    if not passphrase:
        raise PassphraseError("An empty passphrase protects nothing: choose one.")
    file_key, salt, nonce = (secrets.token_bytes(count) for count in (_KEY_BYTES, 16, _NONCE_BYTES))
    return _assemble(content, passphrase, LOG_WORK, file_key, salt, nonce)


def read_log_work(sealed: bytes) -> int:
    """The work factor of a file: log2 of scrypt's N.

    Raises:
        [`ValueError`]: if it is not a passphrase-encrypted age file.
    """
    return _parse(sealed).log_work


def open_with_passphrase(sealed: bytes, passphrase: str, name: str) -> bytes:
    """The content of a passphrase-encrypted age file, armored or not.

    Args:
        sealed (`bytes`): the file, at most `MAX_BYTES` long.
        passphrase (`str`): its passphrase.
        name (`str`): the name of the file in messages.

    Raises:
        [`PassphraseError`]: if it is not such a file, has a work factor above `MAX_LOG_WORK`, is damaged, or the
            passphrase is wrong.
    """
    try:
        parsed = _parse(sealed)
    except ValueError:
        raise PassphraseError(
            f"{name} is not a passphrase-encrypted age file: give the identity file that `vault init` made."
        ) from None
    if parsed.log_work > MAX_LOG_WORK:
        raise PassphraseError(
            f"{name} has the work factor 2^{parsed.log_work}, above the limit of 2^{MAX_LOG_WORK}: encrypt it again "
            f"with the tool that made it, or restore a backup of it."
        )
    try:
        file_key = _cipher(passphrase, parsed.salt, parsed.log_work).decrypt(bytes(12), parsed.wrapped, None)
    except InvalidTag:
        raise PassphraseError(f"{name} does not open with this passphrase: try again; nothing was changed.") from None
    except MemoryError:
        needed = (128 * 8 << parsed.log_work) >> 20
        raise PassphraseError(f"Opening {name} takes {needed:,} MB of memory: free some, and try again.") from None
    nonce, content = parsed.payload[:_NONCE_BYTES], parsed.payload[_NONCE_BYTES:]
    try:
        if not hmac.compare_digest(parsed.mac, _mac(file_key, parsed.header)):
            raise InvalidTag
        return ChaCha20Poly1305(_derive(file_key, nonce, b"payload")).decrypt(_FINAL_CHUNK_NONCE, content, None)
    except InvalidTag:
        raise PassphraseError(f"{name} is damaged: restore a backup of it.") from None


def _assemble(content: bytes, passphrase: str, log_work: int, file_key: bytes, salt: bytes, nonce: bytes) -> bytes:
    wrapped = _cipher(passphrase, salt, log_work).encrypt(bytes(12), file_key, None)
    header = b"%s\n-> scrypt %s %d\n%s\n---" % (_VERSION, _encode(salt), log_work, _encode(wrapped))
    payload = ChaCha20Poly1305(_derive(file_key, nonce, b"payload")).encrypt(_FINAL_CHUNK_NONCE, content, None)
    return header + b" " + _encode(_mac(file_key, header)) + b"\n" + nonce + payload


def _parse(sealed: bytes) -> _Parsed:
    if len(sealed) > MAX_BYTES:
        raise ValueError("too long")
    armored = _ARMOR.fullmatch(sealed)
    if armored is not None:
        sealed = base64.b64decode(b"".join(armored[1].split()), validate=True)
    match = _HEADER.match(sealed)
    if match is None or len(sealed) - match.end() < _NONCE_BYTES + _TAG_BYTES:
        raise ValueError("no scrypt stanza")
    header, salt, log_work, wrapped, mac = match.groups()
    return _Parsed(header, _decode(salt), int(log_work), _decode(wrapped), _decode(mac), sealed[match.end() :])


def _cipher(passphrase: str, salt: bytes, log_work: int) -> ChaCha20Poly1305:
    """The cipher that wraps the file key. A passphrase from the environment may hold bytes that are not UTF-8."""
    scrypt = Scrypt(salt=_VERSION + b"/scrypt" + salt, length=32, n=1 << log_work, r=8, p=1)
    return ChaCha20Poly1305(scrypt.derive(passphrase.encode("utf-8", "surrogateescape")))


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), header, hashlib.sha256)


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def _encode(data: bytes) -> bytes:
    """Base64 without padding, as in age's headers."""
    return base64.b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    """The bytes of an unpadded base64 text; unused bits must be zero, so that each value has one encoding."""
    data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    if _encode(data) != text:
        raise binascii.Error("not canonical")
    return data
