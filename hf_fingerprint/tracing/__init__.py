"""Traces a suspect to the recipients whose copies it was made from, or to nobody."""

from hf_fingerprint.tracing.many import SuspectResult, trace_all
from hf_fingerprint.tracing.result import ComparedBase, RecipientScore, RecordedCopy, SkippedSource, TraceResult
from hf_fingerprint.tracing.trace import trace
from hf_fingerprint.tracing.verify import verify


__all__ = [
    "ComparedBase",
    "RecipientScore",
    "RecordedCopy",
    "SkippedSource",
    "SuspectResult",
    "TraceResult",
    "trace",
    "trace_all",
    "verify",
]
