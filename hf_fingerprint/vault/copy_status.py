"""How far the delivery of a copy is, as far as the vault knows."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from hf_fingerprint.vault.publications import Publication, publications
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.store import Vault


BEGUN, WRITTEN, PUSHED, DELIVERED = "begun", "written", "pushed", "delivered"


def delivery_state(copy: CopyRecord, publication: Publication | None) -> str:
    """How far a copy is: `"begun"` (not finished: in training, or its issue was interrupted), `"written"` (complete,
    on a disk of the owner), `"pushed"` (in its variant repo) or `"delivered"` (pushed, and the recipient's account has
    access). The vault can't know what happens outside the Hub.

    Args:
        copy ([`CopyRecord`]): the record of the copy.
        publication ([`Publication`] or `None`): the record of its push, if there is one.
    """
    if copy.state == "begun":
        return BEGUN
    if publication is None or publication.state != "confirmed":
        return WRITTEN
    return PUSHED if publication.account is None else DELIVERED


class DeliveryStates(Mapping[str, str]):
    """[`delivery_state`] of a vault's copies by id, each looked up when it is asked for.

    Args:
        vault ([`Vault`]): the vault.
    """

    def __init__(self, vault: Vault):
        self._vault = vault

    def __repr__(self) -> str:
        return f"DeliveryStates({self._vault.folder})"

    @cached_property
    def _pushed(self) -> dict[str, Publication]:
        return {found.copy_id: found for found in publications(self._vault)}

    def __getitem__(self, copy_id: str) -> str:
        copy = self._vault.copy_with_id(copy_id)
        if copy is None:
            raise KeyError(copy_id)
        return delivery_state(copy, self._pushed.get(copy_id))

    def __iter__(self) -> Iterator[str]:
        return (copy.copy_id for copy in self._vault.copies())

    def __len__(self) -> int:
        return len(self._vault.copies())


def delivery_states(vault: Vault, copies: Iterable[CopyRecord]) -> dict[str, str]:
    """[`delivery_state`] of several copies, by id."""
    pushed = {found.copy_id: found for found in publications(vault)}
    return {copy.copy_id: delivery_state(copy, pushed.get(copy.copy_id)) for copy in copies}
