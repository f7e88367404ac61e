from dataclasses import replace

import pytest
import torch

from hf_fingerprint.attacks import (
    BatchNormReestimation,
    CarrierReset,
    Clipping,
    LowRank,
    Reinitialization,
    WeightNoise,
)
from hf_fingerprint.attacks.attack import is_weight
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, VIT, accuracy, changed, fresh, make_attacker, same, trained_state


def weights(state):
    return {name: tensor for name, tensor in state.items() if is_weight(tensor)}


NOTHING = [
    WeightNoise(0.0),
    LowRank(1.0),
    Clipping(1.0),
    BatchNormReestimation(0.0),
    CarrierReset(0.0),
    Reinitialization(0.0),
    Reinitialization(0.0, "anywhere"),
]
MUCH = [
    WeightNoise(0.3),
    LowRank(0.3),
    Clipping(0.8),
    BatchNormReestimation(),
    CarrierReset(0.5),
    Reinitialization(0.3),
    Reinitialization(0.3, "anywhere"),
]


@pytest.fixture
def attacker():
    return replace(make_attacker(CNN), base=fresh(CNN, 7))


@pytest.mark.parametrize("attack", NOTHING, ids=repr)
def test_the_least_strength_changes_nothing(attack, attacker):
    state = trained_state()

    after = attack(state, attacker)

    assert after.keys() == state.keys()
    assert all(torch.allclose(after[name].double(), tensor.double(), atol=1e-5) for name, tensor in state.items())


@pytest.mark.parametrize("attack", MUCH, ids=repr)
def test_an_attack_leaves_its_input_alone_and_can_be_repeated(attack, attacker):
    state = trained_state()

    after = attack(state, attacker)

    assert same(state, trained_state())
    assert changed(state, after)
    assert same(after, attack(state, attacker))
    assert not {t.data_ptr() for t in after.values()} & {
        t.data_ptr() for t in (*state.values(), *attacker.base.values())
    }
    attacker.model(after)


@pytest.mark.parametrize("attack", [MUCH[0], MUCH[1], MUCH[2], MUCH[4], MUCH[5]], ids=repr)
def test_half_precision_is_kept(attack, attacker):
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trained_state().items()}

    after = attack(state, attacker)

    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in state.items()}


def test_noise_is_as_large_as_said_in_units_of_each_tensor():
    state = {"small": 1e-3 * torch.randn(200, 200), "large": 10 * torch.randn(200, 200), "bias": torch.ones(3)}

    after = WeightNoise(0.2)(state)

    for name in ("small", "large"):
        noise = after[name] - state[name]
        assert float(noise.norm() / state[name].norm()) == pytest.approx(0.2, rel=0.02)
    assert changed(state, after) == {"small", "large"}
    assert not same(after, WeightNoise(0.2, seed=1)(state))


def test_rank_is_the_share_kept_and_what_is_kept_is_the_best():
    state = {"conv.weight": torch.randn(20, 5, 3, 3), "fc.weight": torch.randn(30, 10)}

    after = LowRank(0.5)(state)

    for name, rank in (("conv.weight", 10), ("fc.weight", 5)):
        old, new = (torch.linalg.svdvals(found[name].flatten(1)) for found in (state, after))
        assert torch.allclose(new[:rank], old[:rank], rtol=1e-4)
        assert new[rank:].max() < 1e-4
    assert torch.linalg.matrix_rank(LowRank(0.0)(state)["fc.weight"]) == 1


def test_clipping_limits_to_a_quantile():
    state = {"w": torch.linspace(-1, 1, 2001).reshape(3, 667)}

    new = Clipping(0.8)(state)["w"]

    assert float(new.abs().max()) == pytest.approx(0.8, abs=2e-3)
    inner = state["w"].abs() < 0.79
    assert torch.equal(new[inner], state["w"][inner])
    assert torch.equal(new.sign(), state["w"].sign())


def test_statistics_become_those_of_the_attackers_images():
    state = trained_state()
    images = 3 + 2 * torch.randn(64, 3, 32, 32)
    attacker = replace(make_attacker(CNN), images=images)

    after = BatchNormReestimation()(state, attacker)

    first = torch.nn.functional.conv2d(
        torch.nn.functional.pad(images, (0, 1, 0, 1)), state["conv_stem.weight"], stride=2
    )
    again = torch.nn.functional.conv2d(images, state["conv_stem.weight"], stride=2, padding=1)
    means = [found.mean((0, 2, 3)) for found in (first, again)]
    assert any(torch.allclose(after["bn1.running_mean"], mean, atol=1e-2, rtol=1e-2) for mean in means)
    assert all("running" in name for name in changed(state, after))
    assert accuracy(after) < accuracy(state)


def test_statistics_move_as_far_as_said():
    state, attacker = trained_state(), make_attacker(CNN)

    half, whole = (BatchNormReestimation(share)(state, attacker) for share in (0.5, 1.0))

    name = "bn2.running_var"
    assert torch.allclose(half[name], (state[name] + whole[name]) / 2, rtol=1e-4)
    assert accuracy(whole) > 0.9


def test_a_model_without_batch_normalization_has_no_statistics():
    with pytest.raises(FingerprintError, match="no batch normalization"):
        BatchNormReestimation()(fresh(VIT), make_attacker(VIT))


def test_the_largest_tensors_are_reset_first(attacker):
    state = trained_state()

    after = CarrierReset(0.25)(state, attacker)

    back, sizes = changed(state, after), {name: tensor.numel() for name, tensor in weights(state).items()}
    assert len(back) == round(0.25 * len(sizes))
    assert min(sizes[name] for name in back) >= max(size for name, size in sizes.items() if name not in back)
    assert all(torch.equal(after[name], attacker.base[name]) for name in back)


def test_in_random_order_others_are_reset(attacker):
    state = trained_state()
    orders = [
        changed(state, CarrierReset(0.25, order, seed)(state, attacker))
        for order, seed in (("largest", 0), ("random", 0), ("random", 1))
    ]

    assert len({frozenset(names) for names in orders}) == 3
    assert len({len(names) for names in orders}) == 1


def test_a_full_reset_gives_the_bases_weights(attacker):
    after = CarrierReset(1.0)(trained_state(), attacker)

    assert all(torch.equal(after[name], attacker.base[name]) for name in weights(after))


def test_what_the_base_has_in_another_shape_stays(attacker):
    state = trained_state()
    base = {name: tensor for name, tensor in attacker.base.items() if name != "conv_head.weight"}
    base["classifier.weight"] = torch.zeros(10, 3)

    after = CarrierReset(1.0)(state, replace(attacker, base=base))

    assert not {"conv_head.weight", "classifier.weight"} & changed(state, after)


def test_nothing_is_reset_without_a_base():
    with pytest.raises(FingerprintError, match="pass its state dict as Attacker"):
        CarrierReset(0.5)(trained_state(), make_attacker(CNN))


def test_layers_are_begun_anew_from_the_end():
    state = trained_state()

    few, more = (changed(state, Reinitialization(share)(state)) for share in (0.01, 0.2))

    assert few == {"classifier.weight", "classifier.bias"}
    assert few < more
    assert "conv_head.weight" in more
    assert "conv_stem.weight" not in more


def test_a_model_begun_anew_has_forgotten_all():
    state = trained_state()

    assert accuracy(state) > 0.9
    assert accuracy(Reinitialization(1.0)(state)) < 0.6
    assert weights(state).keys() <= changed(state, Reinitialization(1.0)(state))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LowRank(1.2),
        lambda: Clipping(-0.1),
        lambda: BatchNormReestimation(2),
        lambda: CarrierReset(1.1),
        lambda: CarrierReset(0.5, "smallest"),
        lambda: Reinitialization(-1),
        lambda: Reinitialization(0.5, "middle"),
    ],
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(FingerprintError, match="choose"):
        wrong()
