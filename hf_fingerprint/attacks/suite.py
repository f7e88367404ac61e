"""All attacks by name, each with a sweep from mild to ruinous strengths. An evaluation chooses from these.

```python
for attack in attack_sweep("int-channel"):
    suspect = attack(copy, attacker)
```
"""

from hf_fingerprint.attacks.adversarial import AdversarialRemoval
from hf_fingerprint.attacks.ancestor.ancestor_sweeps import ancestor_entries
from hf_fingerprint.attacks.attack import AttackStep, Compose
from hf_fingerprint.attacks.basis_change import HeadBasisChange, StreamRotation
from hf_fingerprint.attacks.depth import BlockInsertion, BlockRemoval
from hf_fingerprint.attacks.destruction import (
    BatchNormReestimation,
    CarrierReset,
    Clipping,
    LowRank,
    Reinitialization,
    WeightNoise,
)
from hf_fingerprint.attacks.finetuning import FineTuning, TransferLearning
from hf_fingerprint.attacks.mixing import STRATEGIES, Collusion
from hf_fingerprint.attacks.model_extraction import Distillation, ModelExtraction
from hf_fingerprint.attacks.overwriting import Overwriting
from hf_fingerprint.attacks.pruning import MagnitudePruning, SemiStructuredPruning, StructuredPruning
from hf_fingerprint.attacks.quantization import Cast, Float8, Quantization
from hf_fingerprint.attacks.redundant_units import BatchNormFolding, DummyUnits
from hf_fingerprint.attacks.renaming import Renaming
from hf_fingerprint.attacks.stream_permutation import StreamPermutation
from hf_fingerprint.attacks.stream_slicing import StreamSlicing
from hf_fingerprint.attacks.suite_entry import ANCESTOR, SuiteEntry
from hf_fingerprint.attacks.symmetries import ChannelPermutation, HeadPermutation, RowRescaling
from hf_fingerprint.choices import did_you_mean
from hf_fingerprint.errors import FingerprintError


GROUPS = ("single", "symmetries", "collusion", ANCESTOR)
SGD_RATES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
TEN_TIMES = (0.001, 0.003, 0.01, 0.03, 0.1)


_SINGLE: dict[str, list[AttackStep]] = {
    "finetune": [*FineTuning().sweep()],
    "finetune-sgd": [FineTuning(lr, optimizer="sgd") for lr in SGD_RATES],
    "finetune-last": [*FineTuning(layers="last").sweep()],
    "finetune-fresh-last": [*FineTuning(layers="reinitialized last").sweep()],
    "finetune-decay": [*FineTuning(weight_decay=1.0).sweep()],
    "finetune-other-data": [*TransferLearning().sweep()],
    "prune": [*MagnitudePruning(0.5).sweep()],
    "prune-global": [*MagnitudePruning(0.5, "global").sweep()],
    "prune-rows": [*StructuredPruning(0.1).sweep()],
    "prune-2-of-4": [*SemiStructuredPruning().sweep()],
    "prune-then-finetune": [Compose(attack, FineTuning(1e-4)) for attack in MagnitudePruning(0.5).sweep()],
    "prune-rows-then-finetune": [Compose(attack, FineTuning(1e-4)) for attack in StructuredPruning(0.1).sweep()],
    "prune-2-of-4-then-finetune": [Compose(attack, FineTuning(1e-4)) for attack in SemiStructuredPruning().sweep()],
    "drop-blocks": [*BlockRemoval().sweep()],
    "drop-blocks-then-finetune": [Compose(attack, FineTuning(1e-3)) for attack in BlockRemoval().sweep()],
    "slice-stream": [*StreamSlicing().sweep()],
    "slice-stream-then-finetune": [Compose(attack, FineTuning(1e-4)) for attack in StreamSlicing().sweep()],
    "int": [*Quantization().sweep()],
    "int-channel": [*Quantization(by_channel=True).sweep()],
    "fp8": [Float8("e4m3"), Float8("e5m2")],
    "half": [Cast("float16")],
    "bf16": [Cast("bfloat16")],
    "noise": [*WeightNoise(0.1).sweep()],
    "low-rank": [*LowRank(0.5).sweep()],
    "clip": [*Clipping(0.9).sweep()],
    "batch-norm": [*BatchNormReestimation().sweep()],
    "overwrite": [*Overwriting().sweep()],
    "overwrite-ten-times": [Overwriting(amplitude, 10) for amplitude in TEN_TIMES],
    "reset": [*CarrierReset(0.5).sweep()],
    "reset-random": [*CarrierReset(0.5, "random").sweep()],
    "reinitialize-end": [*Reinitialization(0.1).sweep()],
    "reinitialize-anywhere": [*Reinitialization(0.1, "anywhere").sweep()],
    "remove": [*AdversarialRemoval().sweep()],
    "remove-unconstrained": [*AdversarialRemoval(max_kl=None).sweep()],
    "distill": [*Distillation().sweep()],
    "steal": [*ModelExtraction().sweep()],
    "steal-synthetic": [*ModelExtraction(images="synthetic").sweep()],
}
_STRONGER: dict[str, list[AttackStep]] = {
    "finetune": [FineTuning(3e-2), FineTuning(1e-1)],
    "prune-then-finetune": [Compose(MagnitudePruning(share), FineTuning(1e-4)) for share in (0.98, 0.99, 0.995)],
    "noise": [WeightNoise(0.8), WeightNoise(1.6)],
    "overwrite": [Overwriting(1.0)],
    "overwrite-ten-times": [Overwriting(amplitude, 10) for amplitude in (0.3, 0.5, 0.7, 1.0)],
    "remove-unconstrained": [AdversarialRemoval(far, max_kl=None) for far in (1.6, 3.2, 6.4, 12.8, 25.6, 51.2)],
}
_SYMMETRIES: dict[str, list[AttackStep]] = {
    "shuffle-channels": [*ChannelPermutation().sweep()],
    "rescale-rows": [*RowRescaling().sweep()],
    "flip-rows": [*RowRescaling(flip=True).sweep()],
    "shuffle-heads": [HeadPermutation()],
    "shuffle-stream": [StreamPermutation()],
    "rotate-heads": [*HeadBasisChange().sweep()],
    "rotate-stream": [*StreamRotation().sweep()],
    "dummy-zero": [*DummyUnits().sweep()],
    "dummy-cancelling": [*DummyUnits(kind="cancelling").sweep()],
    "dummy-split": [*DummyUnits(kind="split").sweep()],
    "insert-blocks": [*BlockInsertion().sweep()],
    "fold-norms": [BatchNormFolding()],
    "rename": [Renaming()],
}


def _after_fine_tuning() -> dict[str, list[AttackStep]]:
    """The symmetries, each after a fine-tuning."""
    return {
        f"finetune-then-{name}": [Compose(FineTuning(1e-3), attack, varied_step=1) for attack in attacks]
        for name, attacks in _SYMMETRIES.items()
    }


def _collusion_attacks() -> dict[str, list[AttackStep]]:
    """Each collusion strategy, alone and with each follow-up; averages also with ten times the learning rate."""
    follow_ups: dict[str, list[AttackStep]] = {
        "": [],
        "-then-finetune": [FineTuning(1e-4)],
        "-then-prune": [MagnitudePruning(0.5)],
        "-then-int8": [Quantization(8)],
    }
    found: dict[str, list[AttackStep]] = {
        strategy.replace(" ", "-") + name: [Compose(Collusion(strategy), *more) if more else Collusion(strategy)]
        for strategy in STRATEGIES
        for name, more in follow_ups.items()
    }
    return found | {"average-then-retrain": [Compose(Collusion("average"), FineTuning(1e-3))]}


def _entries() -> dict[str, SuiteEntry]:
    sweeps = (_SINGLE, _SYMMETRIES | _after_fine_tuning(), _collusion_attacks())
    found = {
        name: SuiteEntry(
            group,
            tuple(attacks),
            tuple(_STRONGER.get(name, ())),
            in_quick=not (attacks[0].takes_copies and isinstance(attacks[0], Compose)),
        )
        for group, each in zip(GROUPS[:-1], sweeps, strict=True)
        for name, attacks in each.items()
    }
    return found | ancestor_entries()


SUITE: dict[str, SuiteEntry] = _entries()


def attack_names(group: str | None = None) -> list[str]:
    """The names of a group's attacks, or of all, in the suite's order."""
    return [name for name, sweep in SUITE.items() if group in (None, sweep.group)]


def attack_sweep(name: str) -> list[AttackStep]:
    """An attack of `SUITE` at all its strengths, mildest first. Raises a [`FingerprintError`] if there is none."""
    if name not in SUITE:
        remedy = did_you_mean(name, SUITE, f"choose among {', '.join(SUITE)}")
        raise FingerprintError(f"There is no attack called {name}{remedy}")
    return [*SUITE[name].attacks, *SUITE[name].stronger]
