"""Seals copy keys to the tracing identity with age (X25519, ChaCha20-Poly1305), and the identity with a passphrase.

Issuing needs the public key only. The identity is in a passphrase-encrypted age file, which the `age` command line
tool opens too.
"""

import json
import warnings
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
from hf_fingerprint.vault.storage import translate_disk_errors


def new_identity() -> tuple[str, str]:
    """A new tracing identity: `(identity, public_key)`, as age writes them."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def check_public_key(public_key: str) -> None:
    """Raises an error if a text is not an age public key. The error shows the text only if it can't be a secret."""
    if public_key.strip().upper().startswith("AGE-SECRET-KEY-"):
        raise VaultError(
            "This is a tracing identity, not its public key: give the public key (age1...), and keep the identity off "
            "machines that mark copies."
        )
    try:
        pyrage.x25519.Recipient.from_str(public_key)
    except pyrage.RecipientError:
        raise VaultError("This is not an age public key (age1...): give the one that `vault init` printed.") from None


def encrypt_identity(identity: str, passphrase: str) -> bytes:
    """The passphrase-encrypted age file of an identity."""
    return seal_with_passphrase(identity.encode() + b"\n", passphrase)


def open_identity(path: Path, passphrase: str) -> "AgeIdentity":
    """The identity in a file. Warns if its work factor is lower than that of a new file.

    Raises:
        [`PassphraseError`]: if the passphrase is wrong or the file isn't a passphrase-encrypted identity.
    """
    sealed = _read_identity(path)
    age_identity = AgeIdentity(_unlock(sealed, passphrase, path))
    log_work = read_log_work(sealed)
    if log_work < passphrase_age.LOG_WORK:
        warnings.warn(
            f"{path} has the work factor 2^{log_work} and new identity files have 2^{passphrase_age.LOG_WORK}, so its "
            f"passphrase is quicker to guess: encrypt it again with `hf-fingerprint vault passphrase`.",
            FingerprintWarning,
            stacklevel=2,
        )
    return age_identity


def change_passphrase(path: Path, passphrase: str, new: str) -> "AgeIdentity":
    """Encrypts an identity file again, at the current work factor, and returns the identity.

    The file is replaced atomically, and no copy of the old one is left. The passphrase may stay the same.

    Raises:
        [`PassphraseError`]: if the passphrase is wrong or the new one is empty; nothing is changed.
        [`VaultError`]: if the file can't be written; nothing is changed.
    """
    target = path.resolve()  # keeps a link
    identity = _unlock(_read_identity(path), passphrase, path)
    age_identity, sealed = AgeIdentity(identity), encrypt_identity(identity, new)
    with translate_disk_errors(f"{path} can't be written", target.parent), exclusive_lock(target.parent):
        remove_leftovers(target)
        replace_private(target, sealed)
    return age_identity


def _read_identity(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_IDENTITY, "a tracing identity", VaultError, allow_pipe=True)
    except OSError as error:
        raise VaultError(f"The tracing identity {path} can't be read ({error.strerror}): give its path.") from None


def _unlock(sealed: bytes, passphrase: str, path: Path) -> str:
    content = open_with_passphrase(sealed, passphrase, str(path))
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
        (identity,) = [line for line in lines if line and not line.startswith("#")]  # as age-keygen writes it
        AgeIdentity(identity)
    except (pyrage.IdentityError, ValueError):
        raise PassphraseError(f"{path} holds no tracing identity: give the file that `vault init` made.") from None
    return identity


def seal(copy_key: bytes, copy_id: str, base_id: str, recipient: str, public_key: str) -> bytes:
    """A sealed copy key. The record it belongs to is sealed with it, so that a renamed record is noticed."""
    text = json.dumps({"v": 1, "copy": copy_id, "base": base_id, "recipient": recipient, "key": copy_key.hex()})
    return encrypt(text.encode(), public_key)


def encrypt(content: bytes, *public_keys: str) -> bytes:
    """A content encrypted to public keys, each of which opens it."""
    try:
        return pyrage.encrypt(content, [pyrage.x25519.Recipient.from_str(public_key) for public_key in public_keys])
    except pyrage.RecipientError:
        raise VaultError("The vault's public key is damaged: restore a backup of the vault.") from None


class AgeIdentity:
    """An open tracing identity, or an issuer's key, which opens pushed vaults but no records in them."""

    def __init__(self, identity: str):
        self._identity = pyrage.x25519.Identity.from_str(identity)

    def __repr__(self) -> str:
        return f"AgeIdentity({self.public_key})"

    @property
    def public_key(self) -> str:
        """The public key of this identity."""
        return str(self._identity.to_public())

    def export(self) -> str:
        """The identity as age writes it: the secret itself."""
        return str(self._identity)

    def decrypt(self, content: bytes) -> bytes | None:
        """The content that [`encrypt`] encrypted; `None` if it isn't encrypted to this key, or is damaged."""
        try:
            return pyrage.decrypt(content, [self._identity])
        except (pyrage.DecryptError, TypeError):  # SQLite does not enforce column types
            return None

    def unseal(self, sealed: bytes, copy_id: str, base_id: str, recipient: str) -> bytes:
        """The copy key in a record.

        Raises:
            [`RowError`]: if the seal is broken or was made for another record.
        """
        try:
            content = json.loads(pyrage.decrypt(sealed, [self._identity]))
            key = bytes.fromhex(content["key"])
        except (pyrage.DecryptError, ValueError, KeyError, TypeError, RecursionError):
            content, key = {}, b""
        row_key, expected = f"{short_repr(copy_id)} ({short_repr(recipient)})", (copy_id, base_id, recipient)
        if (content.get("copy"), content.get("base"), content.get("recipient")) != expected:
            raise RowError(Fault("copies", row_key, "was tampered with or sealed to another identity"))
        if len(key) != SECRET_BYTES:
            raise RowError(Fault("copies", row_key, "holds no usable key"))
        return key
