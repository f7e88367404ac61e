from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from hf_fingerprint.errors import BuildError, CarrierError, CodeError
from hf_fingerprint.models import BuiltModel, LazyImages
from hf_fingerprint.registration.output_comparison import compare_outputs, wilson_interval
from hf_fingerprint.registration.outputs import (
    KINDS,
    MAX_POSITIONS,
    divergence,
    find_output_kind,
    output_values,
    random_direction,
    reversing_factors,
    same_decisions,
)
from tests.helpers.error_checks import refused


SHAPES = {"single_label": (2, 5), "multi_label": (2, 5), "dense": (2, 5, 4, 3), "features": (2, 7, 5)}
IMAGES = LazyImages.of(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Returning(torch.nn.Module):
    """A model with a constant output."""

    def __init__(self, output: object):
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> object:
        return self.output


def kind_of(output: object, requested: str | None = None, declared: str | None = None) -> str:
    built = BuiltModel(Returning(output), (3, 8, 8), (0.5,) * 3, (0.5,) * 3, None, declared)
    return find_output_kind(built, torch.zeros(1, 3, 8, 8), requested, "org/model")


def test_the_kind_is_the_configurations_else_the_requested_one_else_the_shapes():
    logits = torch.zeros(1, 5)

    assert kind_of(logits, declared="multi_label") == "multi_label"
    assert kind_of(logits, requested="multi_label") == "multi_label"
    assert kind_of(logits, requested="features", declared="features") == "features"
    assert kind_of(logits) == "single_label"
    assert kind_of(torch.zeros(1, 1)) == "multi_label"
    assert kind_of(torch.zeros(1, 5, 4, 4)) == "dense"
    assert kind_of(torch.zeros(1, 17, 8)) == "features"
    assert kind_of((logits, None)) == "single_label"
    assert kind_of(SimpleNamespace(logits=torch.zeros(1, 5, 4, 4))) == "dense"
    assert kind_of(SimpleNamespace(logits=None, pooler_output=logits)) == "features"
    assert kind_of(SimpleNamespace(last_hidden_state=torch.zeros(1, 17, 8))) == "features"


def test_an_output_that_has_no_budget_is_refused_in_words():
    assert "multi_label by its configuration, not dense: leave out --output-kind" in refused(
        kind_of, torch.zeros(1, 5), "dense", "multi_label", error=CodeError
    )
    one_logit = refused(kind_of, torch.zeros(1, 1), "single_label", error=CodeError)
    assert "one logit, whose softmax is constant" in one_logit
    flat = refused(kind_of, torch.zeros(1, 5), "dense", error=CarrierError)
    assert "output of shape 1 x 5, which is not of kind dense" in flat
    assert "not of any known kind" in refused(kind_of, torch.zeros(5), error=CarrierError)
    assert "without logits or features" in refused(kind_of, {"out": 1}, error=CarrierError)
    with pytest.raises(CarrierError, match=r"predicts a quantity \(regression\)"):
        kind_of(torch.zeros(1, 1), declared="regression")


def test_a_model_that_fails_on_an_image_is_refused_with_its_reason():
    built = BuiltModel(torch.nn.Linear(5, 5), (3, 8, 8), (0.5,) * 3, (0.5,) * 3, None)

    with pytest.raises(BuildError, match=r"can't be run on an image of 3 x 8 x 8 \(RuntimeError\)") as caught:
        find_output_kind(built, torch.zeros(1, 3, 8, 8), None, "org/model")

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_classes_of_a_map_are_its_second_axis():
    logits = drawn(2, 5, 4, 3)

    values = output_values(logits, "dense")

    assert values.shape == (2, 12, 5)
    assert torch.equal(values[1, 5], logits[1, :, 1, 2])


def test_of_a_large_map_the_same_positions_are_taken_each_time():
    logits = torch.arange(2 * 40 * 40).reshape(2, 1, 40, 40)

    one, two = output_values(logits, "dense"), output_values(logits, "dense")

    assert one.shape == (2, MAX_POSITIONS, 1)
    assert torch.equal(one, two)
    assert torch.equal(one[1] - one[0], torch.full((MAX_POSITIONS, 1), 1600))
    assert len(one[0].unique()) == MAX_POSITIONS
    assert one[0, 0] == 0  # where a class token would be


def test_the_divergences_are_those_of_the_textbook():
    one, two = drawn(3, 4), drawn(3, 4, seed=1)
    categorical = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=one), torch.distributions.Categorical(logits=two)
    )
    bernoulli = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=one), torch.distributions.Bernoulli(logits=two)
    ).sum(-1)
    cosine = torch.nn.functional.cosine_similarity(one, two)

    def apart(kind: str) -> torch.Tensor:
        return divergence(output_values(one, kind), output_values(two, kind), kind)

    assert torch.allclose(apart("single_label"), categorical)
    assert torch.allclose(apart("multi_label"), bernoulli)
    assert torch.allclose(apart("features"), 1 - cosine)


def test_a_map_diverges_by_the_mean_over_its_positions():
    one, two = drawn(2, 5, 4, 3), drawn(2, 5, 4, 3, seed=1)

    found = divergence(output_values(one, "dense"), output_values(two, "dense"), "dense")

    by_hand = (one.softmax(1) * (one.log_softmax(1) - two.log_softmax(1))).sum(1).mean((1, 2))
    assert torch.allclose(found, by_hand)


def test_a_map_of_one_class_is_a_decision_at_each_position():
    one, two = drawn(2, 1, 4, 3), drawn(2, 1, 4, 3, seed=1)
    before, after = output_values(one, "dense"), output_values(two, "dense")

    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=one), torch.distributions.Bernoulli(logits=two)
    )

    assert torch.allclose(divergence(before, after, "dense"), expected.mean((1, 2, 3)))
    assert torch.equal(same_decisions(before, after, "dense"), ((one > 0) == (two > 0)).flatten(1))


def test_one_logit_that_changes_its_mind_is_seen():
    before, after = torch.tensor([[0.2], [-0.2]]), torch.tensor([[-0.2], [-0.3]])
    one, two = output_values(before, "multi_label"), output_values(after, "multi_label")

    assert (divergence(one, two, "multi_label") > 1e-3).all()
    assert same_decisions(one, two, "multi_label").flatten().tolist() == [False, True]


def test_an_image_agrees_if_all_its_labels_do():
    one, two = torch.tensor([[1.0, -1.0, 2.0]] * 2), torch.tensor([[1.0, -1.0, 3.0], [1.0, 1.0, 3.0]])

    assert same_decisions(one[:, None], two[:, None], "multi_label").flatten().tolist() == [True, False]
    assert same_decisions(one[:, None], two[:, None], "single_label").flatten().tolist() == [True, True]
    assert same_decisions(one[:, None], two[:, None], "features") is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "features"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_decision_is_reversed_by_its_factor_times_the_change_and_by_no_less(kind, sign):
    before, change = drawn(40, 3, 5), 0.1 * drawn(40, 3, 5, seed=1)
    factors = reversing_factors(before, before + sign * change, kind)

    def reversed_at(share: float) -> torch.Tensor:
        moved = [before + each * share * factors[..., None] * change for each in (1, -1)]
        return ~torch.stack([same_decisions(before, each, kind) for each in moved]).all(0)

    assert factors.shape == (40, 3) and (factors > 0).all()
    assert reversed_at(1.001).all()
    if kind == "multi_label":  # a third class may overtake two
        assert not reversed_at(0.999).any()


def test_what_does_not_change_is_never_reversed_and_features_are_no_decisions():
    tied = torch.tensor([[[1.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]])

    assert reversing_factors(tied, tied, "single_label").tolist() == [[np.inf], [np.inf]]
    assert reversing_factors(tied, tied, "features") is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_direction_has_the_divergences_second_derivative_as_covariance(kind):
    output = drawn(*SHAPES[kind])
    values = output_values(output, kind)
    image = values[:1]

    def moved(change: torch.Tensor) -> torch.Tensor:
        return divergence(image, image + change.reshape(image.shape), kind)[0]

    hessian = torch.autograd.functional.hessian(moved, torch.zeros(image.numel(), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    many = random_direction(image.expand(20_000, *image.shape[1:]), kind, generator).flatten(1).double()

    assert torch.allclose(many.T @ many / len(many), hessian, atol=0.05 * float(hessian.diagonal().max()))


class Linear(torch.nn.Module):
    """A linear model, whose output has any shape."""

    def __init__(self, *shape: int):
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.layer = shape, torch.nn.Linear(3 * 8 * 8, int(np.prod(shape)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1)).unflatten(1, self.shape)


def test_a_comparison_counts_what_it_measured():
    module = Linear(5, 4, 3)
    weight = module.layer.weight.detach().numpy()
    noise = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)

    found = compare_outputs(module, IMAGES, repeat({"layer.weight": weight + 0.01 * noise}), "dense")

    assert (found.images, found.decisions) == (8, 8 * 12)
    assert 0 < found.agreeing < found.decisions
    assert found.agreement == found.agreeing / found.decisions
    assert found.kl_interval[0] < found.kl < found.kl_interval[1]
    assert found.agreement_interval == wilson_interval(found.agreement, 8)
    assert torch.equal(module.layer.weight, torch.from_numpy(weight))


def test_features_have_no_agreement():
    module = Linear(5)
    weight = module.layer.weight.detach().numpy()

    found = compare_outputs(module, IMAGES, repeat({"layer.weight": 3 * weight}), "features")

    assert found.agreement is found.agreement_interval is None
    assert 0 < found.kl < 2


def test_a_comparison_stops_by_the_clock():
    ticks = iter(range(0, 1000, 50))
    images = LazyImages.of(torch.randn(200, 3, 8, 8))
    module = Linear(5)
    same = repeat({"layer.weight": module.layer.weight.detach().numpy()})

    found = compare_outputs(module, images, same, "single_label", 16, 120.0, lambda: next(ticks))

    assert found.images == 48  # three batches of 16: after 50, 100 and 150 seconds
    assert compare_outputs(module, images, same, "single_label").images == 200


@pytest.mark.parametrize(("agreeing", "count"), [(991, 1000), (32, 32), (31, 32), (0, 5)])
def test_the_interval_of_a_share_is_wilsons(agreeing, count):
    expected = binomtest(agreeing, count).proportion_ci(0.95, "wilson")

    assert wilson_interval(agreeing / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_mean_is_over_copies_too_and_its_interval_knows_how_they_scatter():
    module, rng = Linear(1), np.random.default_rng(0)
    bias = module.layer.bias.detach().numpy()
    images = LazyImages.of(torch.randn(640, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    moved = rng.standard_normal(80)  # one direction: a copy's divergence is a square of one normal number

    marks = ({"layer.bias": bias[:, None] + np.float32(0.1 * each)} for each in moved)

    found = compare_outputs(module, images, marks, "multi_label")

    with torch.no_grad():
        chance = module(torch.cat(list(images.batches(640)))).sigmoid()
    curve = float((chance * (1 - chance)).mean()) / 2
    each = curve * (0.1 * moved) ** 2
    assert found.kl == pytest.approx(each.mean(), rel=0.05)
    assert found.kl_scatter == pytest.approx(each.std(ddof=1), rel=0.1)
    half = 1.99 * each.std(ddof=1) / np.sqrt(80)
    assert found.kl_interval == pytest.approx((found.kl - half, found.kl + half), rel=0.1)


def test_equal_copies_do_not_scatter():
    module = Linear(5)
    changed = repeat({"layer.weight": 1.01 * module.layer.weight.detach().numpy()})
    images = LazyImages.of(torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(1)))

    found = compare_outputs(module, images, changed, "single_label")

    assert found.kl_scatter < 0.2 * found.kl
