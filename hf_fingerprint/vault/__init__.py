"""Where secrets and the record of who got what live; never beside the copies."""

from hf_fingerprint.vault.arrival_times import Arrival, arrivals
from hf_fingerprint.vault.backup import back_up
from hf_fingerprint.vault.copy_status import standing, standings
from hf_fingerprint.vault.faults import Fault, RowError, hiding
from hf_fingerprint.vault.issuers import add_issuer, issuers, new_issuer_key, open_issuer_key, remove_issuer
from hf_fingerprint.vault.locations import check_model, check_outside_vaults, check_without_vault
from hf_fingerprint.vault.locks import hold
from hf_fingerprint.vault.merging import MergeReport, merge
from hf_fingerprint.vault.packing import open_pack, pack_vault
from hf_fingerprint.vault.passphrase import find_passphrase
from hf_fingerprint.vault.publications import (
    Publication,
    begin_publication,
    confirm_publication,
    publication_of,
    publications,
)
from hf_fingerprint.vault.record_store import current
from hf_fingerprint.vault.records import (
    Base,
    Calibration,
    Carrier,
    Compact,
    CopyRecord,
    TensorRecord,
    check_recipient,
    recipient_name,
    same_recipient,
)
from hf_fingerprint.vault.rotation import Rotation, rotate
from hf_fingerprint.vault.rows import Rows
from hf_fingerprint.vault.sealing import change_passphrase
from hf_fingerprint.vault.snapshots import Snapshot, take_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.training_copies import begin_training, copies_in_training, forget_copy
from hf_fingerprint.vault.unsealing import Opened, open_copies, unused_rows
from hf_fingerprint.vault.untrusted_database import open_folder


__all__ = [
    "Arrival",
    "Base",
    "Calibration",
    "Carrier",
    "Compact",
    "CopyRecord",
    "Fault",
    "MergeReport",
    "Opened",
    "Publication",
    "Rotation",
    "RowError",
    "Rows",
    "Snapshot",
    "TensorRecord",
    "Vault",
    "add_issuer",
    "arrivals",
    "back_up",
    "begin_publication",
    "begin_training",
    "change_passphrase",
    "check_model",
    "check_outside_vaults",
    "check_recipient",
    "check_without_vault",
    "confirm_publication",
    "copies_in_training",
    "current",
    "find_passphrase",
    "forget_copy",
    "hiding",
    "hold",
    "issuers",
    "merge",
    "new_issuer_key",
    "open_copies",
    "open_folder",
    "open_issuer_key",
    "open_pack",
    "pack_vault",
    "publication_of",
    "publications",
    "recipient_name",
    "remove_issuer",
    "rotate",
    "same_recipient",
    "standing",
    "standings",
    "take_snapshot",
    "unused_rows",
]
