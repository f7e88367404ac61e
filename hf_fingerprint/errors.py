"""The package's exceptions. Each message is one sentence: the file, tensor or repo, what is wrong, what to do."""

from hf_fingerprint.printable import printable


class _OneLineError(Exception):
    """An exception whose text is always one printable line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class FingerprintError(_OneLineError):
    """Base class of all errors of this package."""


class FingerprintWarning(_OneLineError, UserWarning):
    """A result is usable but worse than it could be."""


class CheckpointError(FingerprintError):
    """A checkpoint can't be found, read or copied."""


class CarrierError(FingerprintError):
    """A model has no weights that can hold the mark."""


class MissingExtraError(FingerprintError, ImportError):
    """A library that an optional part of this package needs is not installed."""


class BuildError(FingerprintError):
    """A model can't be built. `__cause__` is the library's exception, if there is one."""


class VaultError(FingerprintError):
    """A vault is missing or damaged, has a newer format, or lacks the requested record."""


class StorageError(VaultError):
    """A disk is full, read-only, failing or in use by another process; the vault on it is unchanged."""


class HubError(FingerprintError):
    """The Hub refuses a request or can't be reached."""


class PassphraseError(VaultError):
    """The passphrase does not open the tracing identity."""


class CodeError(FingerprintError):
    """A code's parameters are invalid."""
