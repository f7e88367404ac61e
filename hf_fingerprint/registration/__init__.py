"""How a base becomes known: built, calibrated, given a code and a secret, and recorded."""

from hf_fingerprint.models import BuiltModel
from hf_fingerprint.registration.content import find_base, open_base, weights_hash
from hf_fingerprint.registration.prediction import averaging_coalition, predicted_score
from hf_fingerprint.registration.registering import examine, register


__all__ = [
    "BuiltModel",
    "averaging_coalition",
    "examine",
    "find_base",
    "open_base",
    "predicted_score",
    "register",
    "weights_hash",
]
