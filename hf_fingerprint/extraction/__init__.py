"""Extraction of the signal from a suspect: match its tensors to the base's, weigh the differences, and add them up.

Nothing here sees a codeword.
"""

from hf_fingerprint.extraction.base_names import to_base_names
from hf_fingerprint.extraction.extract import extract
from hf_fingerprint.extraction.extraction_sums import Extraction, Lineage
from hf_fingerprint.extraction.looks import Looks


__all__ = ["Extraction", "Lineage", "Looks", "extract", "to_base_names"]
