from dataclasses import replace

import pytest
import torch

from hf_fingerprint.attacks import Distillation, ModelExtraction
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, accuracy, fresh, make_attacker, same, trained_state


@pytest.mark.parametrize("attack", [Distillation(25, 3e-3), ModelExtraction(25, lr=3e-3)], ids=repr)
def test_the_function_is_stolen_and_no_weight_is(attack):
    state = trained_state()
    attacker = replace(make_attacker(CNN, 128), labels=torch.zeros(128, dtype=torch.long))  # of no use

    after = attack(state, attacker)

    assert same(state, trained_state())
    assert accuracy(after) > 0.8
    cosine = torch.nn.functional.cosine_similarity(
        *(found["conv_head.weight"].flatten() - fresh(CNN)["conv_head.weight"].flatten() for found in (after, state)),
        dim=0,
    )
    assert abs(float(cosine)) < 0.75
    alone = torch.nn.functional.cosine_similarity(*(s["conv_head.weight"].flatten() for s in (after, state)), dim=0)
    assert abs(float(alone)) < 0.1


def test_a_copy_that_knows_nothing_teaches_nothing():
    after = ModelExtraction(25, lr=3e-3)(fresh(CNN, 5), make_attacker(CNN))

    assert accuracy(after) < 0.7


def test_synthetic_images_may_be_queried():
    state = trained_state()

    own, made = (
        ModelExtraction(2, images, queries=8)(state, make_attacker(CNN)) for images in ("attacker's", "synthetic")
    )

    assert not same(own, made)
    assert same(made, ModelExtraction(2, "synthetic", queries=8)(state, make_attacker(CNN)))


def test_no_more_images_are_queried_than_allowed():
    state, attacker = trained_state(), make_attacker(CNN, 64)
    first = replace(attacker, images=attacker.images[:8], labels=attacker.labels[:8])

    assert same(ModelExtraction(2, queries=8)(state, attacker), ModelExtraction(2)(state, first))
    assert not same(ModelExtraction(2, queries=8)(state, attacker), ModelExtraction(2)(state, attacker))


@pytest.mark.parametrize("wrong", [{"images": "stolen"}, {"queries": 0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(FingerprintError, match="choose at least 1 query of attacker's or synthetic images"):
        ModelExtraction(**wrong)
