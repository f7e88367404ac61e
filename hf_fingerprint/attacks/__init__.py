"""What thieves do to weights: small classes that take a state dict, and what a thief has, and return another.

    suspect = MagnitudePruning(0.5)(copy)
    suspect = Then(Collusion("median"), FineTuning(1e-4))(copies, Thief(build, images, labels))

Each says where it comes from and what its strength is; `SUITE` has all of them by name.
"""

from hf_fingerprint.attacks.adversarial import AdversarialRemoval
from hf_fingerprint.attacks.attack import Attack, Then, Thief
from hf_fingerprint.attacks.basis_change import HeadBasis, StreamRotation
from hf_fingerprint.attacks.destruction import (
    BatchNormReestimation,
    CarrierReset,
    Clipping,
    LowRank,
    Reinitialisation,
    WeightNoise,
)
from hf_fingerprint.attacks.finetuning import FineTuning, TransferLearning
from hf_fingerprint.attacks.mixing import STRATEGIES, Collusion, collude
from hf_fingerprint.attacks.model_extraction import Distillation, Extraction
from hf_fingerprint.attacks.overwriting import Overwriting
from hf_fingerprint.attacks.pruning import MagnitudePruning, StructuredPruning, TwoOfFour
from hf_fingerprint.attacks.quantization import Cast, Float8, Quantization
from hf_fingerprint.attacks.redundant_units import DummyUnits, FoldedNorms
from hf_fingerprint.attacks.renaming import Renaming
from hf_fingerprint.attacks.stream_permutation import StreamShuffle
from hf_fingerprint.attacks.suite import SUITE, names, sweep
from hf_fingerprint.attacks.symmetries import ChannelShuffle, HeadShuffle, RowRescaling


__all__ = [
    "STRATEGIES",
    "SUITE",
    "AdversarialRemoval",
    "Attack",
    "BatchNormReestimation",
    "CarrierReset",
    "Cast",
    "ChannelShuffle",
    "Clipping",
    "Collusion",
    "Distillation",
    "DummyUnits",
    "Extraction",
    "FineTuning",
    "Float8",
    "FoldedNorms",
    "HeadBasis",
    "HeadShuffle",
    "LowRank",
    "MagnitudePruning",
    "Overwriting",
    "Quantization",
    "Reinitialisation",
    "Renaming",
    "RowRescaling",
    "StreamRotation",
    "StreamShuffle",
    "StructuredPruning",
    "Then",
    "Thief",
    "TransferLearning",
    "TwoOfFour",
    "WeightNoise",
    "collude",
    "names",
    "sweep",
]
