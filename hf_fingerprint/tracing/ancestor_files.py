"""Opens the ancestors of the bases that a suspect is compared with, each once in a trace and none before it is needed.

That an ancestor can't be had is no error: what it shows is left out, and the other readings stay.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

from hf_fingerprint.checkpoints import NO_OPTIONS, Checkpoint, HubOptions
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import AncestorInput, open_ancestor
from hf_fingerprint.vault import Base, Vault


@dataclass(frozen=True)
class AncestorFiles:
    """The ancestor of a base that a suspect is compared with.

    Attributes:
        place (`str` or `None`): where it is, with its revision; `None` if none is on record.
        opened ([`Checkpoint`] or `None`): the open ancestor, under the base's names; `None` if it can't be had.
        problem (`str` or `None`): why it can't be had, and what to do.
    """

    place: str | None = None
    opened: Checkpoint | None = None
    problem: str | None = None


NO_ANCESTOR = AncestorFiles()


class AncestorSelection:
    """The ancestors that a trace has opened. The end of a `with` block closes them.

    Args:
        vault ([`Vault`]): the vault.
        given ([`AncestorInput`], *optional*): the ancestor's files, if they have moved; `False` to use no ancestor.
        options ([`HubOptions`], *optional*): for their token and cache.
    """

    def __init__(self, vault: Vault, given: AncestorInput = None, options: HubOptions = NO_OPTIONS):
        self._vault, self._given, self._options = vault, given, options
        self._found: dict[str, AncestorFiles] = {}
        self._is_given_used = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def open(self, bases: Sequence[Base], records: Sequence[Base]) -> None:
        """Opens the ancestors of bases that a suspect is compared with.

        Args:
            bases (sequence of [`Base`]): the bases.
            records (sequence of [`Base`]): all records. A base that names no ancestor has that of another record of
                the same weights.

        Raises:
            [`VaultError`]: if the caller gave files that are the ancestor of none of these bases.
        """
        new = [_with_ancestor(each, records) for each in bases if each.base_id not in self._found]
        if self._given is not None and self._given is not False:
            self._use_given(new, self._given)
        for base in new:
            if base.base_id not in self._found:
                self._found[base.base_id] = self._open_recorded(base)

    def of(self, base: Base) -> AncestorFiles:
        """The ancestor of a base, if it was opened."""
        return self._found.get(base.base_id, NO_ANCESTOR)

    def _use_given(self, bases: Sequence[Base], given: ModelInput) -> None:
        """Opens the files that the caller gave as the ancestor of the bases whose records have their hash."""
        errors = []
        for base in bases:
            try:
                self._enter(base, open_ancestor(base, self._vault, self._options, given))
                self._is_given_used = True
            except VaultError as error:
                errors.append(error)
        if errors and not self._is_given_used:
            raise errors[0]

    def _open_recorded(self, base: Base) -> AncestorFiles:
        if base.ancestor is None:
            return NO_ANCESTOR
        if self._given is False:
            return AncestorFiles(base.ancestor.place, problem="The caller left it out.")
        try:
            return self._enter(base, open_ancestor(base, self._vault, self._options))
        except VaultError as error:
            return AncestorFiles(base.ancestor.place, problem=str(error))

    def _enter(self, base: Base, opened: Checkpoint) -> AncestorFiles:
        place = None if base.ancestor is None else base.ancestor.place
        found = self._found[base.base_id] = AncestorFiles(place, self._stack.enter_context(opened))
        return found


def _with_ancestor(base: Base, records: Sequence[Base]) -> Base:
    same = (each for each in records if each.content_hash == base.content_hash)
    return replace(base, ancestor=next((each.ancestor for each in (base, *same) if each.ancestor is not None), None))
