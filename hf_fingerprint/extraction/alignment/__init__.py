"""Alignment undoes changes that leave a model's function unchanged: permuted, rescaled, flipped or rotated channels.

Nothing here sees a codeword, so a wrong alignment can lose evidence but can't create any.
"""

from hf_fingerprint.extraction.alignment.align import AlignedWeights, align_suspect


__all__ = ["AlignedWeights", "align_suspect"]
