import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import Bottleneck


SHAPES = [(12, 5, 7), (9, 12), (12,)]
KINDS = [*((shape, False) for shape in SHAPES), ((12, 5, 7), True), ((9, 12), True)]


def features_of(shape: tuple[int, ...], count: int = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn((12, 12), generator=generator)
    rows = torch.randn((count, *(shape[1:] if len(shape) == 3 else shape[:-1]), 12), generator=generator) @ mixing + 1
    return rows.movedim(-1, 1) if len(shape) == 3 else rows


@pytest.mark.parametrize(("shape", "flatten_features"), KINDS)
def test_each_number_sent_is_centered_with_unit_mean_square(shape, flatten_features):
    bottleneck = Bottleneck(shape, 4, flatten_features=flatten_features)
    features = features_of(shape)
    bottleneck.init_principal_components(features)

    code = bottleneck.encode(features)

    assert code.shape[1:] == bottleneck.code_shape
    assert float(code.square().mean()) == pytest.approx(1, abs=0.15)  # a few long ones are clipped
    assert float(code.mean().abs()) < 0.05


@pytest.mark.parametrize(("shape", "flatten_features"), KINDS)
@given(factor=st.floats(1e-3, 1e6), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_no_image_and_no_client_part_sends_more_power_than_the_bound_assumes(shape, flatten_features, factor, seed):
    bottleneck = Bottleneck(shape, 4, flatten_features=flatten_features)
    bottleneck.init_principal_components(features_of(shape))

    lengths = bottleneck.encode(factor * features_of(shape, 20, seed)).flatten(1).norm(dim=1)

    assert float(lengths.max()) <= bottleneck.max_norm * (1 + 1e-5)
    assert bottleneck.max_norm**2 == pytest.approx(2 * math.prod(bottleneck.code_shape))


def test_the_bound_is_shannons():
    bottleneck = Bottleneck((12, 4, 4), 2, sigma=2.0)

    assert bottleneck.bits_per_image == pytest.approx(32 / 2 * math.log2(1 + 2 / 4))
    bottleneck.sigma = 0
    assert bottleneck.bits_per_image == math.inf


def test_gaussian_codes_reach_no_more_information_than_the_bound():
    bottleneck = Bottleneck((12,), 4, sigma=1.5)
    features = features_of((12,), 4000)
    bottleneck.init_principal_components(features)
    torch.manual_seed(0)
    code, sent = bottleneck.encode(features), bottleneck.send(features)

    joint = torch.cov(torch.cat([code, sent], 1).T)
    bits = float(torch.logdet(joint[:4, :4]) + torch.logdet(joint[4:, 4:]) - torch.logdet(joint)) / (2 * math.log(2))

    assert 0.3 < bits < bottleneck.bits_per_image


def test_noise_is_as_strong_as_stated_and_as_given():
    bottleneck = Bottleneck((12, 5, 7), 3, sigma=2.5)
    features = features_of((12, 5, 7))
    normal = torch.ones((200, 3, 5, 7))

    assert float((bottleneck.send(features) - bottleneck.encode(features)).std()) == pytest.approx(2.5, rel=0.05)
    assert torch.allclose(bottleneck.send(features, normal), bottleneck.encode(features) + 2.5)


def test_principal_channels_lose_least():
    features = features_of((12, 5, 7))
    principal, first = Bottleneck((12, 5, 7), 3), Bottleneck((12, 5, 7), 3)
    principal.init_principal_components(features)

    def lost(bottleneck: Bottleneck) -> float:
        rows = features.movedim(1, -1).reshape(-1, 12)
        code = rows @ bottleneck.squeeze.detach().T
        return float((rows - code @ torch.linalg.lstsq(code, rows).solution).square().mean())

    assert lost(principal) < 0.7 * lost(first)


def test_one_over_whole_images_sends_a_few_numbers_mixed_from_all_places():
    bottleneck = Bottleneck((12, 5, 7), 4, sigma=1.0, flatten_features=True)
    features = features_of((12, 5, 7))
    bottleneck.init_principal_components(features)
    bottleneck.squeeze[0] = torch.nn.functional.one_hot(torch.tensor(34), 420)  # first channel, last place

    assert bottleneck.code_shape == (4,) and bottleneck.send(features).shape == (200, 4)
    assert bottleneck.bits_per_image == pytest.approx(2 * math.log2(3))
    first = bottleneck.encode(features)[:, 0]
    assert float(torch.corrcoef(torch.stack([first, features[:, 0, 4, 6]]))[0, 1]) > 0.9  # few were clipped
    with pytest.raises(FingerprintError, match="don't fit 420 features"):
        Bottleneck((12, 5, 7), 421, flatten_features=True)


def test_it_travels_as_ordinary_tensors():
    bottleneck = Bottleneck((12, 5, 7), 3, sigma=2.5)
    bottleneck.init_principal_components(features_of((12, 5, 7)))
    other = Bottleneck((12, 5, 7), 3)
    other.load_state_dict(bottleneck.state_dict())

    features = features_of((12, 5, 7), 5, 3)
    assert other.sigma == 2.5
    assert torch.equal(other.encode(features), bottleneck.encode(features))


@pytest.mark.parametrize("channels", [0, 13])
def test_a_bottleneck_that_does_not_fit_is_refused(channels):
    with pytest.raises(FingerprintError, match=f"{channels} channels don't fit 12 features"):
        Bottleneck((12, 5, 7), channels)


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf])
def test_noise_that_is_none_is_refused(sigma):
    with pytest.raises(FingerprintError, match="sigma must be finite and at least 0"):
        Bottleneck((12,), 4, sigma)
