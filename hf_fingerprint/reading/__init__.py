"""Reading a suspect: match its tensors to the base's, weigh what they say, sum it up, and judge."""

from hf_fingerprint.reading.looks import Looks, plan_looks
from hf_fingerprint.reading.matching import match_names, match_tensors, names_tell, sample_cosine, shapes_in_common
from hf_fingerprint.reading.renaming import in_names_of
from hf_fingerprint.reading.suspect import DESCENDS, Lineage, Reading, put_in_order, read_suspect
from hf_fingerprint.reading.verdict import Candidates, RecipientScore, TraceResult, judge


__all__ = [
    "DESCENDS",
    "Candidates",
    "Lineage",
    "Looks",
    "Reading",
    "RecipientScore",
    "TraceResult",
    "in_names_of",
    "judge",
    "match_names",
    "match_tensors",
    "names_tell",
    "plan_looks",
    "put_in_order",
    "read_suspect",
    "sample_cosine",
    "shapes_in_common",
]
