"""Registers a base: builds and calibrates it, gives it a code and a secret, and records it."""

from hf_fingerprint.registration.content import lookup_base, open_base
from hf_fingerprint.registration.known_ancestors import AncestorInput, open_ancestor
from hf_fingerprint.registration.prediction import predicted_coalition, predicted_score, predictions
from hf_fingerprint.registration.registering import analyze_base, register


__all__ = [
    "AncestorInput",
    "analyze_base",
    "lookup_base",
    "open_ancestor",
    "open_base",
    "predicted_coalition",
    "predicted_score",
    "predictions",
    "register",
]
