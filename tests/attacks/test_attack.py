from dataclasses import dataclass

import pytest
import torch

from hf_fingerprint.attacks import (
    Attacker,
    BatchNormReestimation,
    Collusion,
    Compose,
    FineTuning,
    MagnitudePruning,
    Quantization,
)
from hf_fingerprint.attacks.attack import Attack, largest_weights
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, fresh, make_attacker, same


@dataclass(frozen=True)
class Doubling(Attack):
    paper = "nobody's"
    strengths = (1.0, 2.0)
    times: float = 1.0
    name: str = "w"

    def __call__(self, state, attacker=None):
        return {name: tensor * 2**self.times for name, tensor in state.items()}


STATE = {"w": torch.tensor([[1.0, -3.0]]), "b": torch.tensor([5.0])}


def test_strength_is_the_first_field_and_a_sweep_keeps_the_others():
    assert Doubling(3.0).strength == 3
    assert [(attack.times, attack.name) for attack in Doubling(9.0, "x").sweep()] == [(1.0, "x"), (2.0, "x")]


def test_an_attack_with_one_strength_sweeps_alone():
    @dataclass(frozen=True)
    class Naming(Doubling):
        strengths = ()

    assert Naming(5.0).sweep() == [Naming(5.0)]


def test_a_chain_does_one_thing_after_another():
    chain = Compose(Doubling(1.0), Quantization(2), Doubling(2.0))

    assert same(chain(STATE), Doubling(2.0)(Quantization(2)(Doubling(1.0)(STATE))))
    assert not same(chain(STATE), Compose(Quantization(2), Doubling(4.0))(STATE))
    assert chain.strength == 1
    assert (
        repr(chain) == "Doubling(times=1.0, name='w') then Quantization(bits=2, by_channel=False) then "
        "Doubling(times=2.0, name='w')"
    )


def test_a_chain_may_begin_with_a_collusion():
    copies = [STATE, {name: 3 * tensor for name, tensor in STATE.items()}]

    assert same(Compose(Collusion("average"), Doubling(1.0))(copies), Doubling(2.0)(STATE))


def test_a_chain_needs_an_attacker_if_a_step_does_and_names_every_paper_once():
    plain = Compose(MagnitudePruning(0.5), MagnitudePruning(0.5), Quantization(8))

    assert not plain.needs_attacker
    assert Compose(MagnitudePruning(0.5), FineTuning()).needs_attacker
    assert plain.paper == f"{MagnitudePruning.paper}; {Quantization.paper}"
    with pytest.raises(FingerprintError, match="at least one"):
        Compose()


def test_an_attack_that_runs_the_model_says_what_it_needs():
    with pytest.raises(FingerprintError, match="BatchNormReestimation runs the model: pass an Attacker"):
        BatchNormReestimation()(STATE)


def test_an_attacker_builds_the_model_with_the_weights_given():
    state, attacker = fresh(CNN), make_attacker(CNN)

    model, built = attacker.model(state), attacker.as_built_model(state)

    assert same(dict(model.state_dict()), state)
    assert same(dict(built.module.state_dict()), state)
    assert not model.training
    assert built.size == (3, 32, 32)
    with pytest.raises(FingerprintError, match="preprocessed already"):
        built.preprocess(None)
    assert isinstance(attacker, Attacker)


def test_largest_names_weights_by_their_size():
    state = {"a": torch.ones(2, 2), "b": torch.ones(99), "c": torch.ones(3, 3), "d": torch.ones(4, 4, dtype=int)}

    assert largest_weights(state, 1.0) == ["c", "a"]
    assert largest_weights(state, 0.5) == ["c"]
    assert largest_weights(state, 0) == []
