"""What thieves do to weights: small classes that take a state dict and return another. More of them come later."""

from hf_fingerprint.attacks.collusion import STRATEGIES, collude
from hf_fingerprint.attacks.compression import Cast, MagnitudePruning, Quantization
from hf_fingerprint.attacks.symmetries import ChannelShuffle, HeadShuffle, RowRescaling, StreamShuffle


__all__ = [
    "STRATEGIES",
    "Cast",
    "ChannelShuffle",
    "HeadShuffle",
    "MagnitudePruning",
    "Quantization",
    "RowRescaling",
    "StreamShuffle",
    "collude",
]
