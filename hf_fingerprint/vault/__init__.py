"""Where secrets and the record of who got what live; never beside the copies."""

from hf_fingerprint.vault.passphrase import find_passphrase
from hf_fingerprint.vault.records import Base, Calibration, Carrier, CopyRecord, TensorRecord
from hf_fingerprint.vault.store import Vault


__all__ = ["Base", "Calibration", "Carrier", "CopyRecord", "TensorRecord", "Vault", "find_passphrase"]
