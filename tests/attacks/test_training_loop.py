import pytest
import torch

from hf_fingerprint.attacks.training_loop import cpu_state_dict, kl_divergence, make_optimizer, predict_logits, train
from hf_fingerprint.errors import FingerprintError
from tests.helpers.attackers import CNN, changed, fresh, make_attacker, same


def trained(seed=0, steps=3, lr=1e-3, **others):
    calls = []
    attacker = make_attacker(CNN, progress=lambda *step: calls.append(step))
    model = attacker.model(fresh(CNN)).train()
    loss = others.pop("loss", lambda logits, pick: torch.nn.functional.cross_entropy(logits, attacker.labels[pick]))
    train(model, attacker, loss, make_optimizer(model.parameters(), "adamw", lr), steps, seed, **others)
    return model, calls


def test_training_is_the_same_for_the_same_seed():
    one, again, other = (cpu_state_dict(trained(seed)[0]) for seed in (0, 0, 1))

    assert same(one, again)
    assert changed(one, other)


def test_dropout_is_seeded_too_and_the_callers_chance_is_left_alone():
    attacker = make_attacker(CNN)
    runs = []
    for callers_seed in (1, 2):
        model = torch.nn.Sequential(attacker.model(fresh(CNN)), torch.nn.Dropout(0.5)).train()
        torch.manual_seed(callers_seed)
        before = torch.get_rng_state()
        train(
            model,
            attacker,
            lambda student_logits, pick: student_logits.square().mean(),
            make_optimizer(model.parameters(), "sgd", 0.1),
            2,
            0,
        )
        assert torch.get_rng_state().equal(before)
        runs.append(cpu_state_dict(model))

    assert same(*runs)


def test_each_step_is_reported_and_followed_by_the_hook():
    done = []

    model, steps = trained(after_step=lambda: done.append(1))

    assert steps == [("training", number, 3) for number in (1, 2, 3)]
    assert len(done) == 3
    assert not model.training


def test_other_images_can_be_trained_on():
    images = torch.zeros(5, 3, 32, 32)
    picked = []

    def loss(student_logits, pick):
        picked.extend(pick.tolist())
        return student_logits.square().mean()

    trained(images=images, loss=loss)

    assert set(picked) == set(range(5))


def test_a_training_that_diverges_says_so():
    with pytest.raises(FingerprintError, match="diverged at step 1: choose a smaller learning rate"):
        trained(loss=lambda student_logits, pick: student_logits.sum() * float("nan"))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizers_have_their_rate_and_decay(name, kind):
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))], name, 0.5, 0.25)

    assert isinstance(optimizer, kind)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.5, 0.25)


def test_other_optimizers_are_refused():
    with pytest.raises(FingerprintError, match="choose adamw or sgd"):
        make_optimizer([], "lion", 0.5)


def test_divergence_is_none_from_oneself_and_that_of_the_probabilities():
    one, other = torch.randn(6, 4), torch.randn(6, 4)
    p, q = other.softmax(-1), one.softmax(-1)

    assert float(kl_divergence(one, one)) == pytest.approx(0, abs=1e-6)
    assert float(kl_divergence(one, other)) == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert float(kl_divergence(2 * one, 2 * other, 2.0)) == pytest.approx(float(kl_divergence(one, other)), rel=1e-4)


def test_logits_come_batch_by_batch_without_gradients():
    attacker = make_attacker(CNN)
    model = attacker.model(fresh(CNN))

    student_logits = predict_logits(model, attacker.images, 7)

    assert not student_logits.requires_grad
    assert torch.allclose(student_logits, model(attacker.images).detach(), atol=1e-4)


def test_a_models_weights_are_taken_apart_from_it():
    model = make_attacker(CNN).model(fresh(CNN))
    state = cpu_state_dict(model)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    assert same(state, fresh(CNN))
