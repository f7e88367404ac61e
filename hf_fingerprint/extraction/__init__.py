"""Extraction of the signal from a suspect: match its tensors to the base's, weigh the differences, and add them up.

Nothing here sees a codeword.
"""

from hf_fingerprint.extraction.base_names import to_base_names
from hf_fingerprint.extraction.extract import MIN_DESCENDANT_COSINE, Extraction, Lineage, extract, match_and_align
from hf_fingerprint.extraction.looks import Looks, plan_looks
from hf_fingerprint.extraction.match import (
    carriers_with_matching_shape,
    has_unambiguous_names,
    match_names,
    match_tensors,
    sample_row_indices,
)
from hf_fingerprint.extraction.similarity import (
    BaseShares,
    SampledWeights,
    estimate_shares,
    mean_cosine,
    sample_weights,
)


__all__ = [
    "MIN_DESCENDANT_COSINE",
    "BaseShares",
    "Extraction",
    "Lineage",
    "Looks",
    "SampledWeights",
    "carriers_with_matching_shape",
    "estimate_shares",
    "extract",
    "has_unambiguous_names",
    "match_and_align",
    "match_names",
    "match_tensors",
    "mean_cosine",
    "plan_looks",
    "sample_row_indices",
    "sample_weights",
    "to_base_names",
]
