"""The suite's attacks with the ancestor, and their controls.

Each attack on `copy - ancestor` runs alone and with each follow-up, on one copy and on an average of several. Merges
run alone and with each follow-up that needs no single copy. A control has the same follow-up.
"""

from collections.abc import Sequence

from hf_fingerprint.attacks.ancestor.delta_levels import Binarization, Ternarization
from hf_fingerprint.attacks.ancestor.delta_sparsity import MagnitudeBand, RandomDropping
from hf_fingerprint.attacks.ancestor.delta_spectrum import SingularValueShrinkage, SpectralNoise
from hf_fingerprint.attacks.ancestor.model_merging import Merge
from hf_fingerprint.attacks.ancestor.on_delta import AncestorControl, OnDelta, Scaling
from hf_fingerprint.attacks.attack import Attack, AttackStep, Compose
from hf_fingerprint.attacks.destruction import LowRank
from hf_fingerprint.attacks.finetuning import FineTuning
from hf_fingerprint.attacks.mixing import Collusion
from hf_fingerprint.attacks.model_extraction import Distillation
from hf_fingerprint.attacks.quantization import Quantization
from hf_fingerprint.attacks.suite_entry import ANCESTOR, SuiteEntry


CONTROL, DISTILL = "ancestor-weights", "-then-distill"
STEPS = 100  # of training in each follow-up
RANKS = (0.5, 0.25, 0.1, 0.05, 0.03, 0.01)

_ON_DELTA: dict[str, Sequence[Attack]] = {
    "delta-rank": [LowRank(kept) for kept in RANKS],
    "delta-shrink": SingularValueShrinkage(1.0).sweep(),
    "delta-noise": SpectralNoise(0.1).sweep(),
    "delta-blur": [Compose(LowRank(0.1), noise, varied_step=1) for noise in SpectralNoise(0.1).sweep()],
    "delta-trim": MagnitudeBand(0.2).sweep(),
    "delta-dare": RandomDropping(0.9).sweep(),
    "delta-della": [RandomDropping(dropped, (1 - dropped) / 2) for dropped in RandomDropping.strengths],
    "delta-breadcrumbs": [MagnitudeBand(kept, 0.01) for kept in (0.9, 0.5, 0.2, 0.1, 0.05, 0.01)],
    "delta-sign": Binarization().sweep(),
    "delta-ternary": Ternarization(0.7).sweep(),
    "delta-int": [Quantization(bits) for bits in (8, 4, 3, 2)],
    "delta-scale": Scaling(0.5).sweep(),
}
_MERGES: dict[str, Sequence[Merge]] = {
    "merge-task-arithmetic": [Merge(scale=scale) for scale in (1.3, 0.7, 0.3)],
    "merge-ties": [Merge("elected signs", MagnitudeBand(kept)) for kept in (0.5, 0.2, 0.1)],
    "merge-dare": [Merge("mean", RandomDropping(dropped)) for dropped in (0.5, 0.9, 0.95)],
    "merge-dare-ties": [Merge("elected signs", RandomDropping(dropped)) for dropped in (0.5, 0.9, 0.95)],
    "merge-della": [Merge("elected signs", RandomDropping(dropped, 0.15)) for dropped in (0.3, 0.5, 0.7)],
    "merge-breadcrumbs": [Merge("mean", MagnitudeBand(kept, 0.01)) for kept in (0.9, 0.5, 0.2)],
    "merge-stock": [Merge("model stock")],
    "merge-karcher": [Merge("Karcher mean")],
}
_FOLLOW_UPS: dict[str, Attack] = {
    "-then-finetune": FineTuning(1e-4, STEPS),
    "-then-retrain": FineTuning(1e-3, STEPS),
    "-then-int8": Quantization(8),
}


def ancestor_entries() -> dict[str, SuiteEntry]:
    """The entries of the group `"ancestor"`, by name, the controls first.

    Follow-ups run on one copy at three strengths, and on averages and merges at the middle one.
    """
    found: dict[str, SuiteEntry] = {CONTROL: _entry([AncestorControl()])}
    found |= {CONTROL + name: _entry([Compose(AncestorControl(), more)]) for name, more in _FOLLOW_UPS.items()}
    found[CONTROL + DISTILL] = _entry([Distillation(STEPS, start=AncestorControl())])
    for name, changes in _ON_DELTA.items():
        alone = [OnDelta(change) for change in changes]
        found[name] = _entry(alone, control=CONTROL)
        found[f"average-then-{name}"] = _entry([_of_average(step) for step in alone], control=CONTROL)
        few = [alone[0], alone[len(alone) // 2], alone[-1]]
        for follow_up, more in _FOLLOW_UPS.items():
            control = CONTROL + follow_up
            found[name + follow_up] = _entry([Compose(step, more) for step in few], False, control)
            found[f"average-then-{name}{follow_up}"] = _entry([_of_average(few[1], more)], False, control)
        distilled = [Distillation(STEPS, start=step) for step in few]
        found[name + DISTILL] = _entry(distilled, False, CONTROL + DISTILL)
        found[f"average-then-{name}{DISTILL}"] = _entry([_of_average(distilled[1])], False, CONTROL + DISTILL)
    for name, merges in _MERGES.items():
        found[name] = _entry(merges, control=CONTROL)
        for follow_up, more in _FOLLOW_UPS.items():
            found[name + follow_up] = _entry([Compose(merges[len(merges) // 2], more)], False, CONTROL + follow_up)
    return found


def _entry(attacks: Sequence[AttackStep], in_quick: bool = True, control: str | None = None) -> SuiteEntry:
    return SuiteEntry(ANCESTOR, tuple(attacks), in_quick=in_quick, control=control)


def _of_average(*steps: Attack) -> Compose:
    """Attacks on the average of several copies. The first one's strength counts."""
    return Compose(Collusion("average"), *steps, varied_step=1)
