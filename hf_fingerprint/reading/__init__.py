"""Reading a suspect: match its tensors to the base's, weigh what they say, and sum it up."""

from hf_fingerprint.reading.matching import match_names, match_tensors, sample_cosine, shapes_in_common
from hf_fingerprint.reading.suspect import Lineage, Reading, read_suspect


__all__ = ["Lineage", "Reading", "match_names", "match_tensors", "read_suspect", "sample_cosine", "shapes_in_common"]
