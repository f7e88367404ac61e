"""What leaves a model's function unchanged is undone before it is read: channels in another order, rescaled, flipped.

Nothing here sees a codeword, so a wrong alignment costs evidence and can't make any.
"""

from hf_fingerprint.extraction.alignment.align import AlignedWeights, align_suspect


__all__ = ["AlignedWeights", "align_suspect"]
