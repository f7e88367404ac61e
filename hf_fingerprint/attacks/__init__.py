"""Attacks on marked copies: small classes that take a state dict and an [`Attacker`], and return another state dict.

```python
suspect = MagnitudePruning(0.5)(copy)
suspect = Compose(Collusion("median"), FineTuning(1e-4))(copies, Attacker(build, images, labels))
```

Each class names its paper and its strength. `SUITE` lists all of them by name.
"""

from hf_fingerprint.attacks.adversarial import AdversarialRemoval
from hf_fingerprint.attacks.attack import Attack, Attacker, Compose
from hf_fingerprint.attacks.basis_change import HeadBasisChange, StreamRotation
from hf_fingerprint.attacks.destruction import (
    BatchNormReestimation,
    CarrierReset,
    Clipping,
    LowRank,
    Reinitialization,
    WeightNoise,
)
from hf_fingerprint.attacks.finetuning import FineTuning, TransferLearning
from hf_fingerprint.attacks.mixing import STRATEGIES, Collusion, collude
from hf_fingerprint.attacks.model_extraction import Distillation, ModelExtraction
from hf_fingerprint.attacks.overwriting import Overwriting
from hf_fingerprint.attacks.pruning import MagnitudePruning, SemiStructuredPruning, StructuredPruning
from hf_fingerprint.attacks.quantization import Cast, Float8, Quantization
from hf_fingerprint.attacks.redundant_units import BatchNormFolding, DummyUnits
from hf_fingerprint.attacks.renaming import Renaming
from hf_fingerprint.attacks.stream_permutation import StreamPermutation
from hf_fingerprint.attacks.suite import SUITE, attack_names, attack_sweep
from hf_fingerprint.attacks.symmetries import ChannelPermutation, HeadPermutation, RowRescaling


__all__ = [
    "STRATEGIES",
    "SUITE",
    "AdversarialRemoval",
    "Attack",
    "Attacker",
    "BatchNormFolding",
    "BatchNormReestimation",
    "CarrierReset",
    "Cast",
    "ChannelPermutation",
    "Clipping",
    "Collusion",
    "Compose",
    "Distillation",
    "DummyUnits",
    "FineTuning",
    "Float8",
    "HeadBasisChange",
    "HeadPermutation",
    "LowRank",
    "MagnitudePruning",
    "ModelExtraction",
    "Overwriting",
    "Quantization",
    "Reinitialization",
    "Renaming",
    "RowRescaling",
    "SemiStructuredPruning",
    "StreamPermutation",
    "StreamRotation",
    "StructuredPruning",
    "TransferLearning",
    "WeightNoise",
    "attack_names",
    "attack_sweep",
    "collude",
]
