"""Traces copies whose depth was changed, and copies whose parallel branches were fused.

    python -m examples.benchmarks.depth --out bench_output/depth

EfficientNet-Lite0 has its ImageNet weights. A vision transformer and RepVGG-A0 are trained here, briefly, on digits.
Each change is traced alone and with int8, permuted channels, or training after it; next to each stands the score of
the copy itself. What was done to the copy is also done to the base, which must accuse nobody.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from timm.utils.model import reparameterize_model

from examples._common.owner import OTHERS, PASSPHRASE, RECIPIENT
from examples._common.real_inputs import digits, lite0, load_model
from examples._common.results import Figure, Table, add_results_option, figure_table, report
from examples._common.training import fine_tune
from examples.benchmarks.forms import score_of
from hf_fingerprint import FingerprintConfig, Issuer, TraceResult, Vault, trace
from hf_fingerprint.attacks import (
    Attacker,
    BlockInsertion,
    BlockRemoval,
    ChannelPermutation,
    Compose,
    FineTuning,
    HeadPermutation,
    Quantization,
)


TEST_IMAGES, SIZE = 200, 32
VIT = {"img_size": SIZE, "patch_size": 4, "embed_dim": 96, "depth": 12, "num_heads": 3}
TRAINING_STEPS = 60
COLUMNS = (
    "model",
    "change",
    "score",
    "of the copy's",
    "tensors matched",
    "outcome",
    "the base, changed alike",
    "innocents",
)
State = dict[str, torch.Tensor]
Change = Callable[[State, Attacker], State]


@dataclass(frozen=True)
class Traced:
    """A changed copy's trace, and that of the base changed alike."""

    model: str
    change: str
    result: TraceResult
    base: TraceResult
    verbatim: float

    @property
    def score(self) -> float:
        """The leaker's score."""
        return score_of(self.result)

    @property
    def innocents(self) -> int:
        """How many others are accused, by the copy and by the base."""
        accused = {each.recipient for each in self.result.accused} - {RECIPIENT}
        return len(accused) + len(self.base.accused)

    def row(self) -> tuple[str, ...]:
        """The cells of its row."""
        share, matched = self.score / self.verbatim, self.result.tensors_matched
        cells = (f"{self.score:.1f}", f"{share:.2f}", str(matched), str(self.result.outcome), str(self.base.outcome))
        return (self.model, self.change, *cells, str(self.innocents))


def make_model(name: str) -> tuple[torch.nn.Module, dict[str, object]]:
    """An untrained model, or one with its public weights, and its arguments."""
    if name == "lite0":
        model = lite0()
        model.reset_classifier(10)
        return model, {}
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", num_classes=10, **VIT), dict(VIT)
    return timm.create_model("repvgg_a0", num_classes=10), {}


def fused(state: State, attacker: Attacker) -> State:
    """The model with its branches fused."""
    return {n: t.detach().clone() for n, t in reparameterize_model(attacker.model(state)).state_dict().items()}


def fused_then_trained(state: State, attacker: Attacker) -> State:
    """The model with its branches fused, then trained."""
    model = reparameterize_model(attacker.model(state))
    trained = fine_tune(model, attacker.images, attacker.labels, 1e-3, TRAINING_STEPS, batch=16)
    return {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}


def changes(name: str) -> Iterator[tuple[str, Change]]:
    """What is done to a model, with a name."""
    if name == "repvgg":
        yield "fused", fused
        yield "fused, int8 by channel", lambda s, a: Quantization(8, by_channel=True)(fused(s, a))
        yield "fused, then AdamW 1e-3", fused_then_trained
        return
    permuted = (ChannelPermutation(), *((HeadPermutation(),) if name == "vit" else ()))
    removal, insertion = BlockRemoval(1 / 3), BlockInsertion(1 / 3)
    trained = FineTuning(1e-3, steps=TRAINING_STEPS)
    yield "a third of the blocks dropped", removal
    yield "dropped, int8 by channel", Compose(removal, Quantization(8, by_channel=True))
    yield "dropped, channels permuted", Compose(removal, *permuted)
    yield "dropped, then AdamW 1e-3", Compose(removal, trained)
    yield "identities inserted", insertion
    yield "inserted, channels permuted", Compose(insertion, *permuted)


def traced_changes(name: str, out: Path) -> Iterator[Traced]:
    """Issues copies of a model, and traces what is made of one of them."""
    images, labels = digits(SIZE)
    torch.manual_seed(0)
    model, arguments = make_model(name)
    trained = fine_tune(model, images[TEST_IMAGES:], labels[TEST_IMAGES:], 1e-3, TRAINING_STEPS, batch=32)
    trained.pretrained_cfg = dict(trained.pretrained_cfg, input_size=(3, SIZE, SIZE))
    save_for_hf(trained, out / "base", safe_serialization=True, model_args=arguments or None)
    vault = Vault.create(out / "vault", PASSPHRASE)
    vault.unlock(PASSPHRASE)
    with Issuer(out / "base", vault, FingerprintConfig(expected_recipients=1000)) as issuer:
        copy, *_ = list(issuer.issue_all([RECIPIENT, *OTHERS], out / "copies"))
    states = [load_model(folder).state_dict() for folder in (copy.path, out / "base")]
    attacker = Attacker(lambda: make_model(name)[0].eval(), images[TEST_IMAGES:], labels[TEST_IMAGES:], 32)
    verbatim = score_of(trace(states[0], vault, base=out / "base", all_scores=True))
    for label, change in changes(name):
        suspects = [{n: t.contiguous() for n, t in change(state, attacker).items()} for state in states]
        of_copy, of_base = (trace(each, vault, base=out / "base", all_scores=True) for each in suspects)
        yield Traced(name, label, of_copy, of_base, verbatim)


def main(arguments: Sequence[str] | None = None) -> None:
    """Traces all changes of all models, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/depth"), help="an empty folder")
    parser.add_argument("--models", nargs="+", default=["lite0", "vit", "repvgg"])
    add_results_option(parser)
    options = parser.parse_args(arguments)
    traced = [each for name in options.models for each in traced_changes(name, options.out / name)]
    named = sum({one.recipient for one in each.result.accused} == {RECIPIENT} for each in traced)
    innocents = sum(each.innocents for each in traced)
    figures = [
        Figure("changed copies traced to the leaker alone", f"{named} of {len(traced)}", "all", named == len(traced)),
        Figure("innocents accused", str(innocents), "0", innocents == 0),
    ]
    rows = tuple(each.row() for each in traced)
    report(options, [figure_table(figures), Table("depth", "", COLUMNS, rows)])


if __name__ == "__main__":
    main()
