import pytest
import torch
from scipy.stats import kstest

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.keys import new_secret
from hf_fingerprint.privacy import Bottleneck, ImageNoise


SECRET = bytes(range(32))
SHAPE = (4, 6, 6)
GOLDEN = [0.5959645, -0.8329335, -0.2800495, 2.5053108]


def images(count: int = 40) -> torch.Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def test_it_is_normal_and_differs_from_image_to_image():
    drawn = ImageNoise(SECRET).draw(images(), SHAPE)

    assert drawn.shape == (40, *SHAPE)
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    correlations = torch.corrcoef(drawn.flatten(1)).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 0.5


def test_an_image_gets_the_same_noise_whenever_and_wherever_it_is_sent():
    flatten_features = ImageNoise(SECRET).draw(images(), SHAPE)
    order = torch.randperm(40)

    assert torch.equal(ImageNoise(SECRET).draw(images()[order], SHAPE), flatten_features[order])
    assert torch.equal(ImageNoise(SECRET).draw(images()[7:8], SHAPE), flatten_features[7:8])


def test_another_secret_or_another_pixel_gives_other_noise():
    one = ImageNoise(SECRET).draw(images(1), SHAPE)
    changed = images(1)
    changed[0, 0, 0, 0] += 1e-6

    assert (
        abs(float(torch.corrcoef(torch.stack([one, ImageNoise(SECRET).draw(changed, SHAPE)]).flatten(1))[0, 1])) < 0.4
    )
    assert not torch.equal(one, ImageNoise(new_secret()).draw(images(1), SHAPE))


def test_averaging_many_sends_gains_nothing_where_fresh_noise_gives_itself_away():
    bottleneck = Bottleneck((4, 6, 6), 4, sigma=3.0)
    features = torch.randn((40, *SHAPE), generator=torch.Generator().manual_seed(1))
    bottleneck.fit_normalization(features)
    code, noise = bottleneck.encode(features), ImageNoise(SECRET)

    def error(sends: list[torch.Tensor]) -> float:
        return float((torch.stack(sends).mean(0) - code).square().mean())

    once = error([bottleneck.send(features, noise.draw(images(), SHAPE))])
    kept = error([bottleneck.send(features, noise.draw(images(), SHAPE)) for _ in range(50)])
    fresh = error([bottleneck.send(features) for _ in range(50)])

    assert kept == pytest.approx(once, rel=1e-4)
    assert once == pytest.approx(9, rel=0.1)
    assert fresh < once / 30


def test_a_derivation_that_changed_would_be_seen():
    drawn = ImageNoise(SECRET).draw(torch.zeros((1, 1, 2, 2)), (4,))

    assert drawn[0].tolist() == pytest.approx(GOLDEN, abs=1e-6)


def test_the_secret_is_not_shown_and_must_be_one():
    assert SECRET.hex() not in repr(ImageNoise(SECRET)) and repr(SECRET) not in repr(ImageNoise(SECRET))
    with pytest.raises(FingerprintError, match="A secret needs 32 bytes, got 5"):
        ImageNoise(b"short")
