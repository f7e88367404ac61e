"""How far a copy got on its way to its recipient, as far as the vault knows."""

from collections.abc import Iterable

from hf_fingerprint.vault.publications import Publication, publications
from hf_fingerprint.vault.records import CopyRecord
from hf_fingerprint.vault.store import Vault


BEGUN, WRITTEN, PUSHED, DELIVERED = "begun", "written", "pushed", "delivered"


def delivery_state(copy: CopyRecord, publication: Publication | None) -> str:
    """How far a copy got: `"begun"` (recorded before it is finished: it was in training, or an issue was cut off),
    `"written"` (whole, on a disk of the owner's), `"pushed"` (in its variant repo) or `"delivered"` (there, and the
    recipient's account was given access). What happened to it off the Hub the vault can't know.

    Args:
        copy ([`CopyRecord`]): its record.
        publication ([`Publication`] or `None`): the record of its push, if there is one.
    """
    if copy.state == "begun":
        return BEGUN
    if publication is None or publication.state != "confirmed":
        return WRITTEN
    return PUSHED if publication.account is None else DELIVERED


def delivery_states(vault: Vault, copies: Iterable[CopyRecord]) -> dict[str, str]:
    """[`delivery_state`] of several copies, by their ids."""
    pushed = {found.copy_id: found for found in publications(vault)}
    return {copy.copy_id: delivery_state(copy, pushed.get(copy.copy_id)) for copy in copies}
