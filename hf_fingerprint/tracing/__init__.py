"""From a suspect to the recipients it came from, or to nobody."""

from hf_fingerprint.tracing.result import BaseRead, NotRead, OnRecord, RecipientScore, TraceResult
from hf_fingerprint.tracing.trace import trace, verify


__all__ = ["BaseRead", "NotRead", "OnRecord", "RecipientScore", "TraceResult", "trace", "verify"]
