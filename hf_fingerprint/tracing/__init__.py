"""From a suspect to the recipients it came from, or to nobody."""

from hf_fingerprint.reading import RecipientScore, TraceResult
from hf_fingerprint.tracing.tracing import trace, verify


__all__ = ["RecipientScore", "TraceResult", "trace", "verify"]
