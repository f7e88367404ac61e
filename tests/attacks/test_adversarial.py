import pytest
import torch

from hf_fingerprint.attacks import AdversarialRemoval, WeightNoise
from hf_fingerprint.attacks.training_loop import kl_divergence, predict_logits
from hf_fingerprint.carriers import select_from_model
from hf_fingerprint.errors import CarrierError, FingerprintError
from tests.helpers.attackers import CNN, VIT, accuracy, changed, fresh, make_attacker, make_images, same, trained_state


def likely(architecture=CNN):
    attacker = make_attacker(architecture)
    return select_from_model(attacker.model(fresh(architecture)), attacker.images[:1])


def distance(before, after, names):
    squares = [
        ((after[n] - before[n]).flatten(1).square() / before[n].flatten(1).square().mean(1, keepdim=True)).flatten()
        for n in names
    ]
    return float(torch.cat(squares).mean().sqrt())


def kl(before, after):
    images, attacker = make_images(64, seed=9)[0], make_attacker(CNN)
    return float(kl_divergence(*(predict_logits(attacker.model(state), images, 64) for state in (after, before))))


@pytest.mark.parametrize("aim", [0.02, 0.3])
def test_likely_carriers_move_by_the_distance_without_a_limit(aim):
    state = trained_state()

    after = AdversarialRemoval(aim, None, rounds=2, repair=3)(state, make_attacker(CNN))

    assert same(state, trained_state())
    assert distance(state, after, likely()) == pytest.approx(aim, rel=0.02)
    assert accuracy(after) > 0.9


def test_no_distance_is_no_change():
    assert not changed(trained_state(), AdversarialRemoval(0.0)(trained_state(), make_attacker(CNN)))


def test_the_way_ends_where_the_outputs_notice():
    state, attacker = trained_state(), make_attacker(CNN)
    allowed = 1e-4

    after = AdversarialRemoval(3.0, allowed, rounds=2, repair=2)(state, attacker)

    reached = distance(state, after, likely())
    held = attacker.images[:16]
    student_logits, wanted = (predict_logits(attacker.model(found), held, 16) for found in (after, state))
    assert float(kl_divergence(student_logits, wanted)) <= allowed
    assert reached < 2.9
    free = AdversarialRemoval(3.0, None, rounds=2, repair=2)(state, attacker)
    assert float(kl_divergence(predict_logits(attacker.model(free), held, 16), wanted)) > allowed


def test_it_costs_less_than_noise_as_large():
    state, names = trained_state(), likely()

    clever = AdversarialRemoval(0.4, None, rounds=1, repair=10)(state, make_attacker(CNN))
    noise = [WeightNoise(0.4, seed=seed)(state) for seed in range(3)]

    blunt = [{n: noisy[n] if n in names else state[n] for n in state} for noisy in noise]
    assert kl(state, clever) < min(kl(state, each) for each in blunt) / 2


def test_directions_are_seeded():
    state, attacker = fresh(VIT), make_attacker(VIT, 16)
    runs = [AdversarialRemoval(0.1, None, 1, 1, seed=seed)(state, attacker) for seed in (0, 0, 1)]

    assert same(runs[0], runs[1])
    names = likely(VIT)
    moved = [torch.cat([(run[n] - state[n]).flatten() for n in names]) for run in (runs[0], runs[2])]
    assert abs(float(torch.nn.functional.cosine_similarity(*moved, dim=0))) < 0.1


def test_rows_of_zeros_do_no_harm():
    state = trained_state()
    state["conv_head.weight"][:5] = 0

    after = AdversarialRemoval(0.1, None, rounds=1, repair=2)(state, make_attacker(CNN))

    assert all(tensor.isfinite().all() for tensor in after.values())
    others = [name for name in likely() if name != "conv_head.weight"]
    assert distance(state, after, others) == pytest.approx(0.1, rel=0.2)


def test_progress_counts_steps():
    steps = []

    AdversarialRemoval(0.1, None, rounds=2, repair=3)(
        fresh(CNN), make_attacker(CNN, progress=lambda *step: steps.append(step))
    )

    assert len(steps) == 6


@pytest.mark.parametrize("wrong", [{"distance": -1.0}, {"rounds": 0}, {"max_kl": 0.0}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(FingerprintError, match="choose a distance"):
        AdversarialRemoval(**wrong)


def test_a_model_without_likely_carriers_has_nothing_to_remove():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.only = torch.nn.Linear(3 * 32 * 32, 4)

        def forward(self, images):
            return self.only(images.flatten(1))

    attacker = make_attacker(CNN)
    alone = type(attacker)(Constant, attacker.images, attacker.labels)
    with pytest.raises(CarrierError, match="no likely carriers"):
        AdversarialRemoval()(Constant().state_dict(), alone)
