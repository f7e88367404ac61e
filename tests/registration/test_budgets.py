"""The budget that is promised is the budget that is measured, for each kind of output."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_fingerprint import register
from hf_fingerprint.carriers.amplitude import largest_eps, spend_budget
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.errors import CarrierError, CodeError
from hf_fingerprint.models import BuiltModel, LazyImages, lazy_synthetic_images, split_user_images
from hf_fingerprint.models.images import open_image
from hf_fingerprint.registration import analyze_base
from hf_fingerprint.registration.amplitude_search import MarkedModel, random_codewords, search_amplitudes
from hf_fingerprint.registration.output_budget import OutputBudget
from hf_fingerprint.registration.output_comparison import OutputComparison
from hf_fingerprint.vault import Base, Calibration
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PLAIN_SETTINGS, SETTINGS, new_vault


pytestmark = pytest.mark.integration
SIZE = 24


class Net(torch.nn.Module):
    """A small network with a head of any kind; sure of its answers, so that a mark can cost something."""

    def __init__(self, kind: str, classes: int):
        super().__init__()
        self.kind = kind
        self.stem = torch.nn.Conv2d(3, 24, 3, 2, 1)
        self.body = torch.nn.Conv2d(24, 48, 3, 1, 1)
        self.deep = torch.nn.Conv2d(48, 48, 3, 1, 1)
        self.head = torch.nn.Conv2d(48, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.deep(self.body(self.stem(images).relu()).relu()).relu()
        if self.kind == "features":
            return features.mean((2, 3))
        logits = 40 * self.head(features)
        return logits if self.kind == "dense" else logits.mean((2, 3))


CASES = {
    "single label": ("single_label", 10),
    "one logit": ("multi_label", 1),
    "several labels": ("multi_label", 12),
    "a map of classes": ("dense", 6),
    "a map of one class": ("dense", 1),
    "no head": ("features", 1),
}


def network(folder: Path, kind: str, classes: int) -> SimpleNamespace:
    torch.manual_seed(0)
    module = Net(kind, classes).eval()
    if kind != "features":  # so that every class is as likely as not
        with torch.no_grad():
            shown = module(torch.randn(64, 3, SIZE, SIZE)).transpose(0, 1).flatten(1)
            module.head.bias -= shown.mean(1) / 40
    folder.mkdir()
    save_file(module.state_dict(), folder / "model.safetensors", {"format": "pt"})
    half = (0.5,) * 3

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((SIZE, SIZE)), np.float32) / 127.5 - 1
        return torch.from_numpy(pixels).permute(2, 0, 1)

    return SimpleNamespace(folder=folder, built=BuiltModel(module, (3, SIZE, SIZE), half, half, preprocess, kind))


def examined(case: SimpleNamespace, **changes: object) -> Base:
    with open_checkpoint(case.folder) as checkpoint:
        settings = replace(SETTINGS, **changes)
        return analyze_base(checkpoint, settings, built=case.built)


def measured_anew(case: SimpleNamespace, base: Base, images: LazyImages) -> OutputComparison:
    """The effect of marks of this base's amplitudes on other images, and for other recipients."""
    eps = np.array([carrier.eps for carrier in base.carriers])
    rms = {carrier.name: carrier.amplitude / np.float32(carrier.eps) for carrier in base.carriers}
    with open_checkpoint(case.folder) as checkpoint:
        names = {carrier.name: carrier.name for carrier in base.carriers}
        codewords = random_codewords(base.codebook())
        kind = base.calibration.output
        return MarkedModel(checkpoint, case.built, kind, names, rms, base.secret, codewords).compare(eps, images)


@pytest.mark.parametrize("case", CASES)
def test_what_is_recorded_is_what_other_images_show(tmp_path, case):
    model = network(tmp_path / "model", *CASES[case])

    base = examined(model, max_kl=1e-3, calibration_images=1000)

    recorded = base.calibration
    assert (recorded.output, recorded.images, recorded.inputs) == (CASES[case][0], 1000, "synthetic")
    assert 0 < recorded.kl_low <= recorded.kl <= recorded.kl_high
    assert recorded.kl <= 1e-3
    capped = all(carrier.eps == pytest.approx(largest_eps(1e-3)) for carrier in base.carriers)
    assert capped or recorded.kl >= 5e-4
    anew = measured_anew(model, base, lazy_synthetic_images(model.built, 1000, seed=7))
    assert anew.kl == pytest.approx(recorded.kl, rel=0.3)
    if recorded.output == "features":
        assert recorded.agreement is recorded.agreeing is None
    else:
        assert recorded.agreement == recorded.agreeing / recorded.decisions
        assert recorded.agreement_low < anew.agreement < recorded.agreement_high
        assert recorded.decisions == 1000 * (144 if recorded.output == "dense" else 1)


def test_one_logit_is_not_said_to_be_untouched(tmp_path):
    """A softmax of one class is constant: its divergence was 0 and its agreement 100 % whatever the mark did."""
    model = network(tmp_path / "model", "multi_label", 1)

    weak, strong = (examined(model, amplitude=eps).calibration for eps in (0.02, 0.4))

    assert strong.kl > 50 * weak.kl > 0
    assert strong.agreement < 1


def test_the_shape_says_the_kind_where_the_configuration_does_not(tmp_path):
    model = network(tmp_path / "model", "multi_label", 1)
    unsaid = SimpleNamespace(folder=model.folder, built=replace(model.built, output=None))

    assert examined(unsaid).calibration.output == "multi_label"
    text = refused(lambda: examined(unsaid, output_kind="single_label"), error=CodeError)
    assert "choose multi_label" in text


def test_the_requested_kind_is_measured(tmp_path):
    model = network(tmp_path / "model", "multi_label", 12)
    unsaid = SimpleNamespace(folder=model.folder, built=replace(model.built, output=None))

    assert examined(unsaid).calibration.output == "single_label"
    assert examined(unsaid, output_kind="multi_label").calibration.output == "multi_label"
    assert "leave out --output-kind" in refused(lambda: examined(model, output_kind="dense"), error=CodeError)
    with pytest.raises(
        CodeError, match="`output_kind` must be one of single_label, multi_label, dense, features, got logits"
    ):
        replace(SETTINGS, output_kind="logits")


def test_a_known_base_has_the_kind_it_was_registered_with(tmp_path):
    model = network(tmp_path / "model", "multi_label", 12)
    vault = new_vault(tmp_path / "vault")
    base = register(model.folder, vault, SETTINGS, built=model.built)

    assert register(model.folder, vault, replace(SETTINGS, output_kind="multi_label")) == base
    with pytest.raises(CodeError, match=r"registered with output_kind multi_label, not dense: .*--remeasure"):
        register(model.folder, vault, replace(SETTINGS, output_kind="dense"))


def test_at_a_fixed_strength_the_output_is_measured_too(tmp_path):
    model = network(tmp_path / "model", "single_label", 10)

    base = examined(model, amplitude=0.05)

    assert {carrier.eps for carrier in base.carriers} == {0.05}
    assert base.calibration.eps == 0.05
    assert base.calibration.kl > 0
    assert base.calibration.images == 64


def test_an_output_that_is_no_number_is_marked_at_a_fixed_strength_alone(tmp_path):
    model = network(tmp_path / "model", "single_label", 10)

    class Spoilt(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.built.module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) * float("nan")

    spoilt = SimpleNamespace(folder=model.folder, built=replace(model.built, module=Spoilt()))

    text = refused(lambda: examined(spoilt), error=CarrierError)
    base = examined(spoilt, amplitude=0.003)

    assert "gives no numbers on the calibration inputs: mark it at a fixed amplitude with --amplitude 0.003" in text
    assert base.calibration == Calibration("none", 0, 1e-3, None, None, eps=0.003)


def test_an_output_of_no_known_kind_is_marked_at_a_fixed_strength_alone(tmp_path):
    model = network(tmp_path / "model", "single_label", 10)
    wrapped = replace(model.built, output="dense")
    odd = SimpleNamespace(folder=model.folder, built=wrapped)

    text = refused(lambda: examined(odd), error=CarrierError)

    assert (
        "output of shape 1 x 10, which is not of kind dense: mark it at a fixed amplitude with --amplitude 0.003"
        in text
    )
    assert examined(odd, amplitude=0.003).calibration.inputs == "none"


def test_what_many_images_show_to_be_too_much_is_made_weaker(tmp_path):
    """By chance, an amplitude may look right on few images and be wrong."""
    few, many = (LazyImages.of(torch.zeros(count, 3, 4, 4)) for count in (32, 1000))
    tried, steps, allowed, ticks = [], [], [], iter([0.0, 0.0, 60.0])

    def clock() -> float:
        return next(ticks)

    def divided(kl: float, cap: float) -> np.ndarray:
        return np.minimum(cap, np.sqrt([kl]))

    class Marked:
        checkpoint = SimpleNamespace(source=SimpleNamespace(name="org/model"))

        def compare(self, eps: np.ndarray, images: LazyImages, batch: int, *limits: object) -> OutputComparison:
            allowed.append(limits)
            kl = float(eps[0] ** 2) * (1.0 if images is few else 4.0)
            tried.append((len(images), kl))
            return OutputComparison(kl, (0.9 * kl, 1.1 * kl), 0.1 * kl, len(images), len(images), len(images))

    eps, found = search_amplitudes(
        Marked(), few, many, divided, [OutputBudget(1e-4)], lambda step, *_: steps.append(step), clock
    )

    assert [count for count, _ in tried] == [32, 1000, 1000]
    assert allowed == [(), (60.0, clock), (30.0, clock)]  # two minutes in all
    assert tried[1][1] > 1e-4
    assert 0.8e-4 < found.kl <= 1e-4
    assert found.kl == pytest.approx(4 * float(eps[0]) ** 2)
    assert steps == ["measuring the marked model on up to 1,000 other images"]


class TwoTensors:
    """A marked model whose divergence and reversed decisions are exact functions of two amplitudes."""

    checkpoint = SimpleNamespace(source=SimpleNamespace(name="org/model"))

    def __init__(self, sensitivity: tuple[float, float], reversed_by: float = 0.0):
        self.sensitivity, self.reversed_by = np.array(sensitivity), reversed_by

    def compare(self, eps: np.ndarray, images: LazyImages, *others: object, batch: int = 8) -> OutputComparison:
        kl, count = float((eps**2 * self.sensitivity).sum()), len(images)
        lost = self.reversed_by * kl**0.5
        return OutputComparison(kl, (kl, kl), 0.0, count, count, round((1 - lost) * count), (1 - lost, 1 - 1.2 * lost))


class Abrupt(TwoTensors):
    """A marked model that loses many decisions from some divergence on."""

    def __init__(self, limit: float):
        super().__init__((1.0, 1.0))
        self.limit = limit

    def compare(self, *arguments: object, **named: object) -> OutputComparison:
        found = super().compare(*arguments, **named)
        lost = 0.001 if found.kl < self.limit else 0.02 * found.kl / self.limit
        return replace(found, predicted_agreement=(1 - lost, 1 - lost), agreeing=round((1 - lost) * found.decisions))


def searched(marked: TwoTensors, believed: tuple[float, float], budgets: list[OutputBudget]) -> tuple:
    few, many = (LazyImages.of(torch.zeros(count, 3, 4, 4)) for count in (32, 1000))

    def divide(kl: float, cap: float) -> np.ndarray:
        return spend_budget(kl, np.array(believed), np.array([1000, 1000]), cap)

    return search_amplitudes(marked, few, many, divide, budgets, lambda *_: None)


def test_where_decisions_bind_an_insensitive_tensor_keeps_its_amplitude():
    """A fifth of a divergence of 1e-3 is allowed, and only what costs is weakened."""
    true = (1.0, 1e-3)

    eps, found = searched(TwoTensors(true, 0.3), true, [OutputBudget(1e-3, 0.995), OutputBudget(1e-4)])

    assert eps[1] == pytest.approx(largest_eps(1e-3))
    assert 0.5e-4 < found.kl < 3e-4
    assert found.predicted_agreement[1] >= 0.995
    assert found.agreement >= 0.995


def test_the_smaller_divergence_is_the_default_where_no_decisions_can_be_kept():
    true = (1.0, 1e-3)

    _, found = searched(TwoTensors(true, 3.0), true, [OutputBudget(1e-3, 0.995), OutputBudget(1e-4)])

    assert 0.5e-4 <= found.kl <= 1e-4
    assert found.agreement < 0.995


@pytest.mark.parametrize("limit", [1.3e-4, 2e-4, 4e-4])
def test_a_budget_is_spent_although_decisions_are_lost_all_at_once(limit):
    """Where a little more would lose many decisions, the steps down from too much go too far at first."""

    class Abrupt(TwoTensors):
        def compare(self, *arguments: object, **named: object) -> OutputComparison:
            found = super().compare(*arguments, **named)
            lost = 0.001 if found.kl < limit else 0.02 * found.kl / limit
            return replace(
                found, predicted_agreement=(1 - lost, 1 - lost), agreeing=round((1 - lost) * found.decisions)
            )

    _, found = searched(Abrupt((1.0, 1.0)), (1.0, 1.0), [OutputBudget(1e-3, 0.995)])

    assert 0.5 * limit < found.kl < limit


def test_a_tensor_that_costs_more_than_was_believed_is_weakened_too():
    eps, found = searched(TwoTensors((1.0, 3.0)), (1.0, 1e-9), [OutputBudget(1e-4)])

    assert 0.2e-4 < found.kl <= 1e-4
    assert eps[1] < 0.006 < largest_eps(1e-4)


def test_an_agreement_that_no_mark_keeps_is_refused_with_both_ways_out():
    class Coarse(TwoTensors):
        def compare(self, *arguments: object, **named: object) -> OutputComparison:
            return replace(super().compare(*arguments, **named), agreeing=10)

    with pytest.raises(CarrierError, match=r"an agreement of 99\.50%.*--max-kl or a smaller --min-agreement\.$"):
        searched(Coarse((1.0, 1.0)), (1.0, 1.0), [OutputBudget(1e-3, 0.995)])


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (SIZE, SIZE), (i % 256, 90, 200 - i % 50)).save(folder / f"{i:03}.png")
    return folder


@pytest.mark.parametrize(("files", "expected"), [(1, (1, 1)), (2, (1, 1)), (9, (5, 4)), (200, (32, 100))])
def test_strength_is_searched_on_some_of_the_users_images_and_reported_on_others(tmp_path, files, expected):
    folder, read = photographs(tmp_path / "images", files), []
    built = BuiltModel(None, (3, SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, lambda image: torch.zeros(3, SIZE, SIZE))

    def noting(source: Path, *others: object) -> Image.Image:
        read.append(source)
        return open_image(source, *others)

    few, many = split_user_images(folder, built, 32, 100)
    assert read == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fingerprint.models.inputs.open_image", noting)
        counts = [sum(len(batch) for batch in images.batches(16)) for images in (few, many)]

    assert tuple(counts) == (len(few), len(many)) == expected
    assert len(set(read)) == (sum(expected) if files > 1 else 1)


def test_the_users_images_are_counted(tmp_path):
    model = network(tmp_path / "model", "single_label", 10)

    calibration = examined(model, calibration=photographs(tmp_path / "images", 50)).calibration

    assert (calibration.inputs, calibration.images, calibration.decisions) == ("images", 25, 25)


def test_a_fixed_strength_of_what_is_not_built_says_that_nothing_is_known(tmp_path):
    model = network(tmp_path / "model", "single_label", 10)
    with open_checkpoint(model.folder) as checkpoint:
        base = analyze_base(checkpoint, PLAIN_SETTINGS)

    assert base.calibration == Calibration("none", 0, 1e-3, None, None, eps=0.003)
