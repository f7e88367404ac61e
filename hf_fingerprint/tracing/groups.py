"""Registered bases with their open files, grouped by content."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from hf_fingerprint.checkpoints import NO_OPTIONS, Checkpoint, HubOptions
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import open_base
from hf_fingerprint.tracing.result import SkippedSource
from hf_fingerprint.vault import Base, Vault


@dataclass
class BaseGroup:
    """The records of one base, and its open files. Several issuers may have registered the same model.

    Attributes:
        records (`list[Base]`): at least one.
        original ([`Checkpoint`]): the base's files.
        reason (`str`): why it is read.
    """

    records: list[Base]
    original: Checkpoint
    reason: str = "the only base that it may come from"


@dataclass
class BaseSelection:
    """The bases to read and those that are skipped.

    Attributes:
        groups (`list[BaseGroup]`): those to read, the likeliest first; empty if no tensor of the suspect fits any.
        not_read (`list[SkippedSource]`): the others, with reasons.
        unavailable (`list[SkippedSource]`): those that may fit but whose files are missing.
    """

    groups: list[BaseGroup] = field(default_factory=list)
    not_read: list[SkippedSource] = field(default_factory=list)
    unavailable: list[SkippedSource] = field(default_factory=list)

    def skip(self, records: Sequence[Base], reason: str) -> None:
        """Lists a base as not read."""
        self.not_read.extend(SkippedSource(base.base_id, base.source, reason) for base in records)


def records_with_hash(bases: Sequence[Base], content_hash: str) -> list[Base]:
    """The records of the base with this content hash."""
    return [base for base in bases if base.content_hash == content_hash]


def open_base_files(
    records: list[Base], vault: Vault, stack: ExitStack, options: HubOptions = NO_OPTIONS
) -> Checkpoint:
    """Opens the files of a base, from the first registered location that still has them, with a token and a cache."""
    errors: list[VaultError] = []
    for base in records:
        try:
            return stack.enter_context(open_base(base, vault, options))
        except VaultError as error:
            errors.append(error)
    raise errors[0]
