"""Sealing copy keys to the tracing identity, with age (X25519, ChaCha20-Poly1305), and guarding the identity itself.

Whoever issues needs the public key only. The identity is an age identity in a passphrase-encrypted age file, so the
age command line tool opens it too.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import pyrage

from hf_fingerprint.checkpoints.limits import MAX_IDENTITY, read_bounded
from hf_fingerprint.errors import FingerprintWarning, PassphraseError, VaultError
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault import passphrase_age
from hf_fingerprint.vault.base_validation import short_repr
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.passphrase_age import open_with_passphrase, read_log_work, seal_with_passphrase
from hf_fingerprint.vault.private_files import exclusive_lock, remove_leftovers, replace_private
from hf_fingerprint.vault.storage import file_error


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


def encrypt_identity(identity: str, passphrase: str) -> bytes:
    """The identity as a passphrase-encrypted age file."""
    return seal_with_passphrase(identity.encode() + b"\n", passphrase)


def open_identity(path: Path, passphrase: str) -> "AgeIdentity":
    """Opens an identity file, and warns if its passphrase is quicker to guess than that of a new one.

    Raises:
        [`PassphraseError`]: if the passphrase is wrong or the file isn't a passphrase-encrypted identity.
    """
    sealed = _read_identity(path)
    age_identity = AgeIdentity(_unlock(sealed, passphrase, path))
    log_work = read_log_work(sealed)
    if log_work < passphrase_age.LOG_WORK:
        warnings.warn(
            f"Guessing the passphrase of {path} takes 2^{log_work} steps a try, and that of a new identity "
            f"2^{passphrase_age.LOG_WORK}: seal it again with `hf-fingerprint vault passphrase`.",
            FingerprintWarning,
            stacklevel=2,
        )
    return age_identity


def change_passphrase(path: Path, passphrase: str, new: str) -> "AgeIdentity":
    """Seals an identity file again, at the work factor of new ones and with the passphrase that is given, the same or
    another. The file is replaced at once; nothing of the old seal is left next to it.

    Raises:
        [`PassphraseError`]: if the passphrase is wrong or the new one is empty; nothing is changed.
        [`VaultError`]: if the file can't be written; nothing is changed.
    """
    place = path.resolve()  # a link stays one
    identity = _unlock(_read_identity(path), passphrase, path)
    age_identity, sealed = AgeIdentity(identity), encrypt_identity(identity, new)
    try:
        with exclusive_lock(place.parent):
            remove_leftovers(place)
            replace_private(place, sealed)
    except OSError as error:
        raise file_error(f"{path} can't be written", place.parent, error) from None
    return age_identity


def _read_identity(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_IDENTITY, "a tracing identity", VaultError, allow_pipe=True)
    except OSError as error:
        raise VaultError(f"The tracing identity {path} can't be read ({error.strerror}): give its place.") from None


def _unlock(sealed: bytes, passphrase: str, path: Path) -> str:
    content = open_with_passphrase(sealed, passphrase, str(path))
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
        (identity,) = [line for line in lines if line and not line.startswith("#")]  # as age-keygen writes it
        AgeIdentity(identity)
    except (pyrage.IdentityError, ValueError):
        raise PassphraseError(
            f"{path} opens, and what is in it is no tracing identity: give the file that `vault init` made."
        ) from None
    return identity


def seal(copy_key: bytes, copy_id: str, base_id: str, recipient: str, public_key: str) -> bytes:
    """Seals a copy key together with what it belongs to, so that a record can't be given another name unnoticed."""
    text = json.dumps({"v": 1, "copy": copy_id, "base": base_id, "recipient": recipient, "key": copy_key.hex()})
    return _encrypt(text.encode(), public_key)


def seal_key_cache(content: bytes, public_key: str) -> bytes:
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


class AgeIdentity:
    """The tracing identity, open; or an issuer's key, which opens pushed vaults and no record in them."""

    def __init__(self, identity: str):
        self._identity = pyrage.x25519.Identity.from_str(identity)

    def __repr__(self) -> str:
        return f"Opener({self.public_key})"

    @property
    def public_key(self) -> str:
        """The public key that goes with it."""
        return str(self._identity.to_public())

    def unseal_key_cache(self, sealed: bytes) -> bytes:
        """The content of a bundle; empty if it can't be opened, since a bundle is only a shortcut."""
        return self.unseal_pack(sealed) or b""

    def unseal_pack(self, sealed: bytes) -> bytes | None:
        """The content of a whole vault; `None` if it wasn't encrypted to this key, or is damaged."""
        try:
            return pyrage.decrypt(sealed, [self._identity])
        except (pyrage.DecryptError, TypeError):  # SQLite keeps whatever type it was given
            return None

    def unseal(self, sealed: bytes, copy_id: str, base_id: str, recipient: str) -> bytes:
        """The copy key in a record.

        Raises:
            [`RowError`]: if the seal is broken or was made for another record.
        """
        try:
            content = json.loads(pyrage.decrypt(sealed, [self._identity]))
            key = bytes.fromhex(content["key"])
        except (pyrage.DecryptError, ValueError, KeyError, TypeError, RecursionError):  # of any type, or too deep
            content, key = {}, b""
        named, expected = f"{short_repr(copy_id)} ({short_repr(recipient)})", (copy_id, base_id, recipient)
        if (content.get("copy"), content.get("base"), content.get("recipient")) != expected:
            raise RowError(Fault("copies", named, "was tampered with or sealed to another identity"))
        if len(key) != SECRET_BYTES:
            raise RowError(Fault("copies", named, "holds no usable key"))
        return key
