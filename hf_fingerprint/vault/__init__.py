"""The vault: secrets and the record of who got which copy. It never lies in a folder of copies."""

from hf_fingerprint.vault.arrival_times import Arrival, arrivals
from hf_fingerprint.vault.backup import back_up
from hf_fingerprint.vault.copy_status import DeliveryStates, delivery_state, delivery_states
from hf_fingerprint.vault.copy_table import CopyTable
from hf_fingerprint.vault.faults import Fault, RowError, inconclusive_reasons
from hf_fingerprint.vault.issuers import add_issuer, issuers, new_issuer_key, open_issuer_key, remove_issuer
from hf_fingerprint.vault.locations import check_holds_no_vault, check_model_folder, check_outside_vaults
from hf_fingerprint.vault.locks import acquire_lock
from hf_fingerprint.vault.merging import MergeReport, merge
from hf_fingerprint.vault.packing import open_pack, pack_vault
from hf_fingerprint.vault.passphrase import find_passphrase
from hf_fingerprint.vault.publications import (
    Publication,
    begin_publication,
    confirm_publication,
    find_publication,
    publications,
)
from hf_fingerprint.vault.record_store import current_bases
from hf_fingerprint.vault.records import (
    Ancestor,
    Base,
    Calibration,
    Carrier,
    CompactMark,
    CopyRecord,
    TensorRecord,
    canonical_recipient,
    check_recipient,
    same_recipient,
)
from hf_fingerprint.vault.rotation import VaultRotation, rotate
from hf_fingerprint.vault.rows import VaultRows
from hf_fingerprint.vault.sealing import change_passphrase
from hf_fingerprint.vault.snapshots import Snapshot, take_snapshot
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.training_copies import begin_training, copies_in_training, find_begun_copy, forget_copy
from hf_fingerprint.vault.unsealing import OpenedCopies, find_unusable_rows, open_copies
from hf_fingerprint.vault.untrusted_database import read_vault_folder


__all__ = [
    "Ancestor",
    "Arrival",
    "Base",
    "Calibration",
    "Carrier",
    "CompactMark",
    "CopyRecord",
    "CopyTable",
    "DeliveryStates",
    "Fault",
    "MergeReport",
    "OpenedCopies",
    "Publication",
    "RowError",
    "Snapshot",
    "TensorRecord",
    "Vault",
    "VaultRotation",
    "VaultRows",
    "acquire_lock",
    "add_issuer",
    "arrivals",
    "back_up",
    "begin_publication",
    "begin_training",
    "canonical_recipient",
    "change_passphrase",
    "check_holds_no_vault",
    "check_model_folder",
    "check_outside_vaults",
    "check_recipient",
    "confirm_publication",
    "copies_in_training",
    "current_bases",
    "delivery_state",
    "delivery_states",
    "find_begun_copy",
    "find_passphrase",
    "find_publication",
    "find_unusable_rows",
    "forget_copy",
    "inconclusive_reasons",
    "issuers",
    "merge",
    "new_issuer_key",
    "open_copies",
    "open_issuer_key",
    "open_pack",
    "pack_vault",
    "publications",
    "read_vault_folder",
    "remove_issuer",
    "rotate",
    "same_recipient",
    "take_snapshot",
]
