"""How far the delivery of a copy is, as far as the vault knows."""

from collections.abc import Iterable

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


def delivery_states(vault: Vault, copies: Iterable[CopyRecord]) -> dict[str, str]:
    """[`delivery_state`] of several copies, by id."""
    pushed = {found.copy_id: found for found in publications(vault)}
    return {copy.copy_id: delivery_state(copy, pushed.get(copy.copy_id)) for copy in copies}
