from dataclasses import replace

import pytest
import torch

from hf_fingerprint.attacks import (
    AncestorControl,
    Binarization,
    Compose,
    Distillation,
    FineTuning,
    LowRank,
    MagnitudeBand,
    Merge,
    OnDelta,
    Quantization,
    RandomDropping,
    Scaling,
    SingularValueShrinkage,
    SpectralNoise,
    Ternarization,
)
from hf_fingerprint.attacks.attack import is_weight
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, VIT, accuracy, changed, fresh, make_attacker, same, trained_state


CHANGES = [
    LowRank(0.1),
    SingularValueShrinkage(1.0),
    SpectralNoise(0.3),
    MagnitudeBand(0.2),
    MagnitudeBand(0.5, 0.01),
    RandomDropping(0.9),
    RandomDropping(0.5, 0.2),
    Binarization(),
    Ternarization(0.7),
    Quantization(3),
    Scaling(0.3),
    Compose(LowRank(0.1), SpectralNoise(0.3)),
]


@pytest.fixture
def ancestor():
    """Weights near the copy's, with another last layer."""
    state = {n: t + 0.01 * torch.randn_like(t) if is_weight(t) else t + 0 for n, t in trained_state().items()}
    return state | {"classifier.weight": torch.zeros(7, state["classifier.weight"].shape[1])}


@pytest.fixture
def attacker(ancestor):
    return replace(make_attacker(CNN), ancestor=ancestor)


def weights_but_head(state):
    return {name for name, tensor in state.items() if is_weight(tensor) and not name.startswith("classifier")}


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_weights_that_the_ancestor_has_are_attacked_and_statistics_are_new(change, attacker):
    state = trained_state()

    after = OnDelta(change)(state, attacker)

    found = changed(state, after)
    assert found >= weights_but_head(state)
    assert all("running_" in name for name in found - weights_but_head(state))
    assert any("running_" in name for name in found)
    assert same(state, trained_state())
    assert same(after, OnDelta(change)(state, attacker))


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_the_attack_sees_the_difference_to_the_ancestor_alone(change, attacker, ancestor):
    state = trained_state()

    after = OnDelta(change)(state, attacker)

    name = "conv_head.weight"
    body = {n: state[n] - ancestor[n] for n in state if n in weights_but_head(state)}
    assert torch.allclose(after[name], ancestor[name] + change(body)[name], atol=1e-6)


def test_a_last_layer_of_the_same_shape_is_the_copys_too(ancestor):
    state, others = trained_state(), fresh(CNN, 5)

    after = OnDelta(Scaling(0.0))(state, replace(make_attacker(CNN), ancestor=others))

    assert torch.equal(after["classifier.weight"], state["classifier.weight"])
    assert torch.equal(after["conv_head.weight"], others["conv_head.weight"])


def test_what_the_ancestor_lacks_is_the_copys(attacker, ancestor):
    state = trained_state()
    del ancestor["conv_head.weight"]

    after = OnDelta(Scaling(0.0))(state, replace(attacker, ancestor=ancestor))

    assert torch.equal(after["conv_head.weight"], state["conv_head.weight"])
    assert torch.equal(after["conv_stem.weight"], ancestor["conv_stem.weight"])


def test_interpolation_is_from_the_ancestor_at_0_to_the_copy_at_1(attacker, ancestor):
    state = trained_state()

    none, half, whole = (OnDelta(Scaling(factor))(state, attacker) for factor in (0.0, 0.5, 1.0))

    for name in weights_but_head(state):
        assert torch.equal(none[name], ancestor[name])
        assert torch.allclose(half[name], (state[name] + ancestor[name]) / 2, atol=1e-6)
        assert torch.allclose(whole[name], state[name], atol=1e-6)


@pytest.mark.parametrize("change", [LowRank(1.0), SingularValueShrinkage(0.0), SpectralNoise(0.0), MagnitudeBand(1.0)])
def test_the_least_strength_gives_the_copy(change, attacker):
    state = trained_state()

    after = OnDelta(change)(state, attacker)

    assert all(torch.allclose(after[name], state[name], atol=1e-5) for name in weights_but_head(state))


def test_the_control_is_the_ancestor_with_the_copys_last_layer_and_no_trace_of_its_other_weights(attacker, ancestor):
    state, other = trained_state(), {n: t.clone() for n, t in trained_state().items()}
    for name in weights_but_head(state):
        other[name] += torch.randn_like(other[name])

    after = AncestorControl()(state, attacker)

    assert same(after, AncestorControl()(other, attacker))
    assert all(torch.equal(after[name], ancestor[name]) for name in weights_but_head(state))
    assert torch.equal(after["classifier.bias"], state["classifier.bias"])


def test_a_control_that_is_trained_learns_from_the_copy(attacker):
    state, random = trained_state(), replace(attacker, ancestor=fresh(CNN, 5))
    unlabeled = replace(random, labels=torch.zeros_like(random.labels))

    distilled = Distillation(25, 3e-3, start=AncestorControl())(state, unlabeled)
    tuned = Compose(AncestorControl(), FineTuning(3e-3, 25))(state, random)

    assert accuracy(AncestorControl()(state, random)) < 0.6 < 0.8 < accuracy(distilled)
    assert accuracy(tuned) > 0.8


def test_distillation_starts_where_it_is_said_to(attacker, ancestor):
    state = trained_state()

    after = Distillation(1, 1e-6, start=AncestorControl())(state, attacker)

    assert torch.allclose(after["conv_head.weight"], ancestor["conv_head.weight"], atol=1e-4)
    assert Distillation(7).strength == 7
    assert Distillation(7, start=OnDelta(LowRank(0.25))).strength == 0.25


def test_precision_is_kept(attacker):
    state = {n: t.half() if t.is_floating_point() else t for n, t in trained_state().items()}
    vit = {n: t.half() for n, t in fresh(VIT).items()}

    after = OnDelta(LowRank(0.5))(vit, replace(make_attacker(VIT), ancestor=fresh(VIT, 1)))

    assert {t.dtype for t in after.values()} == {torch.float16}
    assert {n: t.dtype for n, t in OnDelta(LowRank(0.5))(state, attacker).items()} == {
        n: t.dtype for n, t in state.items()
    }


def test_a_sweep_is_that_of_the_attack_on_the_difference():
    sweep = OnDelta(Scaling(1.0)).sweep()

    assert [step.strength for step in sweep] == list(Scaling.strengths)
    assert sweep[0].paper == Scaling.paper
    assert repr(sweep[0]) == "OnDelta(attack=Scaling(factor=0.9))"


def test_an_ancestor_is_needed_and_it_has_the_copys_shapes():
    state = trained_state()
    for attack in (OnDelta(LowRank(0.5)), AncestorControl()):
        with pytest.raises(FingerprintError, match="pass an Attacker"):
            attack(state)
        with pytest.raises(FingerprintError, match="needs the public ancestor"):
            attack(state, make_attacker(CNN))
        with pytest.raises(FingerprintError, match="none of the copy's weights"):
            attack(state, replace(make_attacker(CNN), ancestor=fresh(VIT)))
    with pytest.raises(FingerprintError, match="needs the public ancestor"):
        Merge()([state], make_attacker(CNN))


def test_an_attack_that_runs_the_model_is_refused():
    with pytest.raises(FingerprintError, match="choose an attack that runs no model"):
        OnDelta(FineTuning())
