"""Reading a suspect: match its tensors to the base's, weigh what they say, and sum it up."""

from hf_fingerprint.reading.likeness import Sampled, Shares, cosine, sample, shares_of
from hf_fingerprint.reading.looks import Looks, plan_looks
from hf_fingerprint.reading.matching import match_names, match_shapes, match_tensors, names_tell, sample_rows
from hf_fingerprint.reading.renaming import in_names_of
from hf_fingerprint.reading.suspect import DESCENDS, Lineage, Reading, put_in_order, read_suspect


__all__ = [
    "DESCENDS",
    "Lineage",
    "Looks",
    "Reading",
    "Sampled",
    "Shares",
    "cosine",
    "in_names_of",
    "match_names",
    "match_shapes",
    "match_tensors",
    "names_tell",
    "plan_looks",
    "put_in_order",
    "read_suspect",
    "sample",
    "sample_rows",
    "shares_of",
]
