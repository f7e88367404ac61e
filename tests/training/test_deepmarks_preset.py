import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from hf_fingerprint.errors import CarrierError, CodeError, FingerprintError
from hf_fingerprint.training import DeepMarks, DeepMarksLoss
from hf_fingerprint.training.deepmarks_preset import default_layers


pytestmark = pytest.mark.integration
KEY = bytes(range(32))


def cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def marked(scheme, user, seed=0):
    """A model with a user's fingerprint, put in at once."""
    model = cnn(seed)
    DeepMarksLoss(model, scheme.fingerprint(user), embed=True)
    return model


def averaged(models):
    mean = cnn()
    states = [model.state_dict() for model in models]
    mean.load_state_dict({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
    return mean


def test_the_term_is_the_papers():
    scheme, model = DeepMarks(KEY, 31), cnn()
    part = scheme.maps(model)["2.weight"]
    gaussian_then_u = part._matrix.double()
    f_less_xw = (
        scheme.design.signs[5] - (gaussian_then_u @ model[2].weight.detach().double().flatten(1).mean(0)).numpy()
    )

    term = DeepMarksLoss(model, scheme.fingerprint(5), strength=0.3, embed=False)()

    assert float(term.detach()) == pytest.approx(0.3 * np.mean(f_less_xw**2), rel=1e-5)


def test_training_drives_every_bit_right_and_leaves_the_other_layers_alone():
    scheme, model = DeepMarks(KEY, 31), cnn()
    first = model[0].weight.detach().clone()
    term = DeepMarksLoss(model, scheme.fingerprint(3), strength=1.0, embed=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    for _ in range(150):
        optimizer.zero_grad()
        term().backward()
        optimizer.step()

    found = scheme.decode(scheme.extract(model))
    assert (found.bits == scheme.design.codewords[3]).all()
    assert found.coalition == found.soft.accused == (3,)
    assert torch.equal(model[0].weight, first)


def test_an_unmarked_model_is_nobodys():
    scheme = DeepMarks(KEY, 31)

    for seed in range(20):
        found = scheme.decode(scheme.extract(cnn(seed)))
        assert found.coalition == found.soft.accused == ()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_averaged_copies_name_their_users_and_nobody_else(size):
    scheme = DeepMarks(KEY, 31)
    models = [marked(scheme, user) for user in range(5)]
    for users in itertools.islice(itertools.combinations(range(5), size), 4):
        found = scheme.decode(scheme.extract(averaged([models[user] for user in users])))

        assert found.coalition == found.soft.accused == users


def test_another_key_reads_nothing():
    model = marked(DeepMarks(KEY, 31), 3)
    other = DeepMarks(bytes(32), 31)

    found = other.decode(other.extract(model))

    assert found.coalition == found.soft.accused == ()


def test_several_layers_are_one_longer_vector():
    scheme = DeepMarks(KEY, 31, layers=("0.weight", "2.weight"))

    assert scheme.decode(scheme.extract(marked(scheme, 9))).coalition == (9,)


def test_the_layer_with_the_largest_filters_is_the_default():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)
    )

    assert default_layers(model) == ("4.weight",)
    assert default_layers(nn.Linear(3, 3)) == ()


def test_a_layer_with_fewer_weights_than_positions_is_refused():
    with pytest.raises(CarrierError, match=r"0\.weight: a filter has 9 weights and the code 31 positions"):
        DeepMarksLoss(cnn(), DeepMarks(KEY, 31, layers=("0.weight",)).fingerprint(0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DeepMarks(b"short"), "32 bytes"),
        (lambda: DeepMarks(KEY, 111), "111"),
        (lambda: DeepMarks(KEY, 31).fingerprint(31), "user 31"),
        (lambda: DeepMarks(KEY, 31, layers=("missing.weight",)).maps(cnn()), "missing.weight"),
        (lambda: DeepMarks(KEY, 31).maps(nn.Linear(3, 3)), "no convolution"),
        (lambda: pickle.dumps(DeepMarks(KEY, 31)), "can't be pickled"),
        (lambda: pickle.dumps(DeepMarks(KEY, 31).fingerprint(1)), "can't be pickled"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, said):
    with pytest.raises((CodeError, CarrierError, FingerprintError)) as refused:
        make()
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")
    assert KEY.hex() not in str(refused.value)


def test_it_shows_no_secret():
    assert repr(DeepMarks(KEY, 31)) == "DeepMarks(points=31, layers=None)"
    assert KEY.hex() not in repr(DeepMarks(KEY, 31).fingerprint(3))
