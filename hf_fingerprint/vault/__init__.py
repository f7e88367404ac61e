"""Where secrets and the record of who got what live; never beside the copies."""

from hf_fingerprint.vault.passphrase import find_passphrase
from hf_fingerprint.vault.records import Base, Calibration, Carrier, CopyRecord, TensorRecord, check_recipient
from hf_fingerprint.vault.store import Vault
from hf_fingerprint.vault.unfinished import begin_training, copies_in_training, finish_training


__all__ = [
    "Base",
    "Calibration",
    "Carrier",
    "CopyRecord",
    "TensorRecord",
    "Vault",
    "begin_training",
    "check_recipient",
    "copies_in_training",
    "find_passphrase",
    "finish_training",
]
