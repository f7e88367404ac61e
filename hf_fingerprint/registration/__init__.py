"""How a base becomes known: built, calibrated, given a code and a secret, and recorded."""

from hf_fingerprint.registration.building import BuiltModel
from hf_fingerprint.registration.content import open_base, weights_hash
from hf_fingerprint.registration.registering import Settings, averaging_coalition, examine, predicted_score, register


__all__ = [
    "BuiltModel",
    "Settings",
    "averaging_coalition",
    "examine",
    "open_base",
    "predicted_score",
    "register",
    "weights_hash",
]
