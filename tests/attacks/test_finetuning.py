from dataclasses import replace

import pytest
import torch

from hf_fingerprint.attacks import FineTuning, TransferLearning
from hf_fingerprint.attacks.training_loop import predict_logits
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, VIT, accuracy, changed, fresh, make_attacker, make_images, same, trained_state


def distance(one, other):
    return sum(float((one[n] - other[n]).square().sum()) for n in one if one[n].ndim > 1) ** 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_on_a_attackers_images_moves_weights_and_keeps_accuracy(optimizer):
    state = trained_state()
    rates = (1e-5, 1e-3)

    after = [FineTuning(lr, 5, optimizer=optimizer)(state, make_attacker(CNN)) for lr in rates]

    assert same(state, trained_state())
    assert 0 < distance(state, after[0]) < distance(state, after[1]) / 10
    assert accuracy(after[1]) > 0.9


def test_a_copy_that_has_learned_nothing_learns():
    after = FineTuning(3e-3, 20)(fresh(CNN, 3), make_attacker(CNN))

    assert accuracy(fresh(CNN, 3)) < 0.6 < 0.8 < accuracy(after)


@pytest.mark.parametrize(("architecture", "head"), [(CNN, "classifier"), (VIT, "head")])
def test_the_last_layer_alone_moves_if_it_alone_is_trained(architecture, head):
    state = fresh(architecture)

    after = FineTuning(1e-2, 2, layers="last")(state, make_attacker(architecture))

    assert changed(state, after) == {f"{head}.weight", f"{head}.bias"}


def test_more_layers_may_be_the_last():
    state = fresh(VIT)

    after = FineTuning(1e-2, 2, layers="last", last=2)(state, make_attacker(VIT))

    assert {name.split(".")[0] for name in changed(state, after)} == {"head", "norm", "blocks"}
    assert {n for n in changed(state, after) if n.startswith("blocks")} == {
        "blocks.5.mlp.fc2.weight",
        "blocks.5.mlp.fc2.bias",
    }


def test_fresh_last_layers_forget_and_then_all_layers_learn():
    state, attacker = trained_state(), make_attacker(CNN)

    begun = FineTuning(1e-3, 0, layers="reinitialized last")(state, attacker)
    after = FineTuning(1e-3, 5, layers="reinitialized last")(state, attacker)

    assert changed(state, begun) == {"classifier.weight", "classifier.bias"}
    assert changed(state, after) > changed(state, begun)
    cosine = torch.nn.functional.cosine_similarity(*(s["classifier.weight"].flatten() for s in (state, begun)), 0)
    assert abs(float(cosine)) < 0.2


def test_weight_decay_shrinks():
    state, attacker = trained_state(), make_attacker(CNN)

    plain, shrunk = (FineTuning(1e-3, 5, weight_decay=decay)(state, attacker) for decay in (0.0, 50.0))

    norms = [after["conv_head.weight"].norm() for after in (plain, shrunk)]
    assert norms[1] < 0.85 * norms[0]


def test_another_seed_is_another_order():
    state, attacker = trained_state(), make_attacker(CNN)
    runs = [FineTuning(1e-3, 2, seed=seed)(state, attacker) for seed in (0, 0, 1)]

    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_another_task_is_learned_from_a_fresh_last_layer_on():
    state, (images, labels) = trained_state(), make_images(128, 2)
    attacker = make_attacker(CNN, 256)

    after = TransferLearning(3e-3, 20)(state, attacker)

    student_logits = predict_logits(attacker.model(after), -images.rot90(1, (2, 3)), 64).argmax(-1)
    assert float((student_logits == (labels + 1) % 4).double().mean()) > 0.8
    assert accuracy(after) < 0.6
    assert changed(state, after) >= {"conv_stem.weight", "classifier.weight"}


def test_an_attacker_may_bring_other_data():
    state, attacker, other = trained_state(), make_attacker(CNN), make_attacker(CNN, seed=5)

    brought, made = (TransferLearning(1e-3, 2, other=each)(state, attacker) for each in (other, None))

    assert not same(brought, made)
    assert same(brought, FineTuning(1e-3, 2, "reinitialized last")(state, other))


def test_labels_that_the_model_does_not_know_are_refused():
    attacker = make_attacker(CNN)
    other = replace(attacker, labels=attacker.labels + 7)

    with pytest.raises(FingerprintError, match="Labels reach 10, but the model has 4 classes"):
        FineTuning(1e-3, 1)(fresh(CNN), other)


@pytest.mark.parametrize("wrong", [{"layers": "first"}, {"optimizer": "lion"}])
def test_other_ways_to_train_are_refused(wrong):
    with pytest.raises(FingerprintError, match="choose all, last, reinitialized last and adamw or sgd"):
        FineTuning(**wrong)


def test_progress_counts_steps():
    steps = []

    FineTuning(1e-3, 4)(fresh(CNN), make_attacker(CNN, progress=lambda *step: steps.append(step)))

    assert len(steps) == 4


def test_a_transformers_classifier_is_trained_too():
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**small, image_size=32, patch_size=8, num_labels=4)
    attacker = replace(make_attacker(CNN), build=lambda: ViTForImageClassification(config).eval())
    state = attacker.build().state_dict()

    after = FineTuning(1e-3, 2, layers="last")(state, attacker)

    assert changed(state, after) == {"classifier.weight", "classifier.bias"}
