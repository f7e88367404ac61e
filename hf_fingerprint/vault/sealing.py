"""Sealing copy keys to the tracing identity, with age (X25519, ChaCha20-Poly1305), and guarding the identity itself.

Whoever issues needs the public key only. The identity is an age identity in a passphrase-encrypted age file, so the
age command line tool opens it too.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pyrage

from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.keys import SECRET_BYTES


TRIES = 3
TOO_MUCH_WORK = "work parameter"  # what age says if opening would take this machine long


def new_identity() -> tuple[str, str]:
    """A fresh tracing identity: `(identity, public_key)`, both in age's spelling."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def check_public_key(public_key: str) -> None:
    """Refuses what isn't the public key of a tracing identity, without ever showing it."""
    if public_key.strip().upper().startswith("AGE-SECRET-KEY-"):
        raise VaultError(
            "A tracing identity was given where its public key (age1...) is due: give that, and keep the identity off "
            "machines that mark copies."
        )
    try:
        pyrage.x25519.Recipient.from_str(public_key)
    except pyrage.RecipientError:
        raise VaultError(
            "What was given as public key is none: give the one that `vault init` printed, age1..."
        ) from None


def lock_identity(identity: str, passphrase: str) -> bytes:
    """The identity as a passphrase-encrypted age file."""
    if not passphrase:
        raise PassphraseError("An empty passphrase protects nothing: choose one.")
    return pyrage.passphrase.encrypt(identity.encode() + b"\n", passphrase)


def open_identity(path: Path, passphrase: str) -> "Opener":
    """Opens an identity file.

    Raises:
        [`PassphraseError`]: if the passphrase is wrong or the file isn't an identity, or this machine is too slow or
            too busy for it: age times itself first, and declines what would take it long.
    """
    try:
        locked = path.read_bytes()
    except OSError as error:
        raise VaultError(f"The tracing identity {path} can't be read ({error.strerror}): give its place.") from None
    declined = False
    for _ in range(TRIES):
        try:
            return Opener(pyrage.passphrase.decrypt(locked, passphrase).decode().strip())
        except (pyrage.DecryptError, pyrage.IdentityError, UnicodeDecodeError) as error:
            declined = TOO_MUCH_WORK in str(error)
            if not declined:
                break
    if declined:
        raise PassphraseError(
            f"{path} was locked on a machine that is much faster than this one, or than this one is just now: try "
            f"again when it is less busy, or elsewhere; nothing was changed."
        )
    raise PassphraseError(f"{path} does not open with this passphrase: try again; nothing was changed.")


def seal(copy_key: bytes, copy_id: str, base_id: str, recipient: str, public_key: str) -> bytes:
    """Seals a copy key together with what it belongs to, so that a record can't be given another name unnoticed."""
    text = json.dumps({"v": 1, "copy": copy_id, "base": base_id, "recipient": recipient, "key": copy_key.hex()})
    return _encrypt(text.encode(), public_key)


def seal_bundle(content: bytes, public_key: str) -> bytes:
    """Seals the content of a bundle."""
    return _encrypt(content, public_key)


def seal_pack(content: bytes, public_keys: Sequence[str]) -> bytes:
    """Encrypts a whole vault to several public keys, each of which opens it."""
    return _encrypt(content, *public_keys)


def _encrypt(content: bytes, *public_keys: str) -> bytes:
    try:
        return pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(public_key) for public_key in public_keys])
    except pyrage.RecipientError:
        raise VaultError("The vault's public key is damaged: restore a backup of the vault.") from None


class Opener:
    """The tracing identity, open; or an issuer's key, which opens pushed vaults and no record in them."""

    def __init__(self, identity: str):
        self._identity = pyrage.x25519.Identity.from_str(identity)

    def __repr__(self) -> str:
        return f"Opener({self.public_key})"

    @property
    def public_key(self) -> str:
        """The public key that goes with it."""
        return str(self._identity.to_public())

    def unseal_bundle(self, sealed: bytes) -> bytes:
        """The content of a bundle; empty if it can't be opened, since a bundle is only a shortcut."""
        return self.unseal_pack(sealed) or b""

    def unseal_pack(self, sealed: bytes) -> bytes | None:
        """The content of a whole vault; `None` if it wasn't encrypted to this key, or is damaged."""
        try:
            return pyrage.decrypt(sealed, [self._identity])
        except pyrage.DecryptError:
            return None

    def unseal(self, sealed: bytes, copy_id: str, base_id: str, recipient: str) -> bytes:
        """The copy key in a record.

        Raises:
            [`VaultError`]: if the seal is broken or was made for another record.
        """
        try:
            content = json.loads(pyrage.decrypt(sealed, [self._identity]))
            key = bytes.fromhex(content["key"])
        except (
            pyrage.DecryptError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ):  # whatever was sealed, of any type
            content, key = None, b""
        belongs = (copy_id, base_id, recipient)
        if content is None or (content.get("copy"), content.get("base"), content.get("recipient")) != belongs:
            raise VaultError(
                f"The record of copy {copy_id} ({recipient}) was tampered with or sealed to another identity: "
                f"restore a backup."
            )
        if len(key) != SECRET_BYTES:
            raise VaultError(f"The record of copy {copy_id} ({recipient}) holds no usable key: restore a backup.")
        return key
