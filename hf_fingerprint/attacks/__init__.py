"""What thieves do to weights: small classes that take a state dict, and what a thief has, and return another.

    suspect = MagnitudePruning(0.5)(copy)
    suspect = Then(Collusion("median"), FineTuning(1e-4))(copies, Thief(build, images, labels))

Each says where it comes from and what its strength is; `SUITE` has all of them by name.
"""

from hf_fingerprint.attacks.attack import Attack, Then, Thief
from hf_fingerprint.attacks.collusion import STRATEGIES, Collusion, collude
from hf_fingerprint.attacks.pruning import MagnitudePruning, StructuredPruning, TwoOfFour
from hf_fingerprint.attacks.quantisation import Cast, Float8, Quantization
from hf_fingerprint.attacks.suite import SUITE, names, sweep
from hf_fingerprint.attacks.symmetries import ChannelShuffle, HeadShuffle, RowRescaling, StreamShuffle


__all__ = [
    "STRATEGIES",
    "SUITE",
    "Attack",
    "Cast",
    "ChannelShuffle",
    "Collusion",
    "Float8",
    "HeadShuffle",
    "MagnitudePruning",
    "Quantization",
    "RowRescaling",
    "StreamShuffle",
    "StructuredPruning",
    "Then",
    "Thief",
    "TwoOfFour",
    "collude",
    "names",
    "sweep",
]
