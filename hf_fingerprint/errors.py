"""The errors a caller may meet: one sentence each, with the file, tensor or repo it is about and what to do."""

from hf_fingerprint.printable import printable


class _OneLineError(Exception):
    """Shows as one line, whatever the names in it hold."""

    def __str__(self) -> str:
        return printable(super().__str__())


class FingerprintError(_OneLineError):
    """Anything this package refuses to do. The text is one sentence meant for the user."""


class FingerprintWarning(_OneLineError, UserWarning):
    """Something that is done all the same, but not as well as it could be. One sentence, as an error's."""


class CheckpointError(FingerprintError):
    """A checkpoint can't be found, read or copied."""


class CarrierError(FingerprintError):
    """A model has no weights that could hold the mark."""


class BuildError(FingerprintError):
    """A model can't be built to run here. `__cause__` is what the library raised, if it raised something."""


class VaultError(FingerprintError):
    """A vault is missing, damaged, of a newer format, or was asked for something it doesn't hold."""


class StorageError(VaultError):
    """A disk is full, read-only, in use by another process or failing; a vault on it is as it was."""


class HubError(FingerprintError):
    """The Hub refuses something, or can't be reached."""


class PassphraseError(VaultError):
    """The tracing identity can't be opened with what was given."""


class CodeError(FingerprintError):
    """A code was asked for with parameters that make no sense."""
