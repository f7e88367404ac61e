"""Reading a suspect: match its tensors to the base's, weigh what they say, and sum it up."""

from hf_fingerprint.extraction.base_names import in_names_of
from hf_fingerprint.extraction.extract import DESCENDS, Lineage, Reading, put_in_order, read_suspect
from hf_fingerprint.extraction.looks import Looks, plan_looks
from hf_fingerprint.extraction.match import match_names, match_shapes, match_tensors, names_tell, sample_rows
from hf_fingerprint.extraction.similarity import Sampled, Shares, cosine, sample, shares_of


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
