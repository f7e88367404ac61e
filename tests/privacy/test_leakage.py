from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_similarity
from sklearn.metrics import roc_auc_score

from examples._common.real_inputs import digits
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import (
    ImageDecoder,
    matching_auc,
    measure_membership,
    measure_reconstruction,
    train_decoder,
)
from hf_fingerprint.privacy.decoder import structural_similarity
from hf_fingerprint.privacy.leakage import roc_auc


pytestmark = pytest.mark.integration


class Constant(torch.nn.Module):
    """A decoder with a constant output."""

    def __init__(self, drawn: torch.Tensor):
        super().__init__()
        self.drawn = drawn

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return self.drawn[: len(code)]


def test_psnr_and_ssim_are_scikit_images():
    images = digits(32)[0][:6]
    drawn = (images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)

    found = measure_reconstruction(Constant(drawn), torch.zeros(6, 1), images)
    pairs = [(image.numpy(), other.numpy()) for image, other in zip(images, drawn, strict=True)]
    ssim = [
        skimage_similarity(
            *pair, channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for pair in pairs
    ]
    psnr = [peak_signal_noise_ratio(*pair, data_range=2) for pair in pairs]

    assert found.ssim == pytest.approx(np.mean(ssim), abs=0.002)
    assert found.psnr == pytest.approx(np.mean(psnr), abs=0.01)
    assert found.to_dict() == {"psnr": found.psnr, "ssim": found.ssim}


def test_ssim_is_one_for_the_same_image_alone():
    images = digits(32)[0][:6]

    assert torch.allclose(structural_similarity(images, images, 2.0), torch.ones(6), atol=1e-4)
    assert float(structural_similarity(images, images.flip(2), 2.0).max()) < 0.9


@pytest.mark.parametrize(
    ("code_shape", "size"),
    [
        ((4, 8, 8), (3, 32, 32)),
        ((4, 4, 6), (1, 28, 42)),
        ((17, 6), (3, 32, 32)),
        ((16, 6), (3, 40, 40)),
        ((9,), (3, 64, 64)),
    ],
)
def test_a_decoder_draws_from_maps_tokens_and_vectors(code_shape, size):
    assert ImageDecoder(code_shape, size, 32)(torch.randn(2, *code_shape)).shape == (2, *size)


def with_noise(noise: float, code: torch.Tensor) -> torch.Tensor:
    return code + noise * torch.randn_like(code)


@pytest.mark.slow
def test_the_adversary_draws_from_clear_codes_and_less_from_noise():
    images = digits(32)[0]
    public, private = images[:1200], images[1200:1400]
    shrunk = torch.nn.functional.avg_pool2d(images, 4)

    found = []
    for noise in (0.0, 4.0):
        decoder = train_decoder(partial(with_noise, noise), shrunk[:1200], public, 120)
        found.append(measure_reconstruction(decoder, shrunk[1200:1400] + noise * torch.randn(200, 3, 8, 8), private))

    assert found[0].ssim > 0.8
    assert found[1].ssim < 0.5 * found[0].ssim
    assert found[0].psnr > found[1].psnr + 5


@pytest.mark.parametrize(
    "shape", [(4, 4, 4), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((64,), (16, 4)))]
)
def test_the_adversary_finds_what_is_scattered_over_all_places(shape):
    images = digits(32)[0]
    mixing = torch.linalg.qr(torch.randn((64, 64), generator=torch.Generator().manual_seed(0)))[0]
    codes = (torch.nn.functional.avg_pool2d(images, 4)[:, 0].flatten(1) @ mixing).reshape(-1, *shape)
    decoder = train_decoder(lambda code: code, codes[:1200], images[:1200], 200)

    assert measure_reconstruction(decoder, codes[1200:1400], images[1200:1400]).ssim > 0.6


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
)
@settings(deadline=None)
def test_the_area_is_scikit_learns(positives, negatives):
    truth = [1] * len(positives) + [0] * len(negatives)

    found = roc_auc(np.array(positives), np.array(negatives))

    assert found == pytest.approx(roc_auc_score(truth, positives + negatives))


def test_a_model_that_learned_by_heart_gives_its_members_away():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn((200, 3, 8, 8), generator=generator), torch.randint(10, (200,), generator=generator)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    members, others = (images[:100], labels[:100]), (images[100:], labels[100:])
    untrained = measure_membership(model, members, others)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(members[0]), members[1]).backward()
        optimizer.step()

    found = measure_membership(model.eval(), members, others)

    assert found.by_loss > 0.95
    assert found.by_confidences > 0.9
    assert found.auc == max(found.by_loss, found.by_confidences)
    assert 0.35 < untrained.by_loss < 0.65


def test_matching_finds_what_was_sent_with_little_noise_and_not_with_much():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn((300, 4, 4, 4), generator=generator)
    noise = torch.randn((150, 4, 4, 4), generator=generator)

    assert matching_auc(codes[:150] + 0.5 * noise, codes[:150], codes[150:], 0.5) > 0.99
    assert matching_auc(codes[:150] + 20 * noise, codes[:150], codes[150:], 20.0) < 0.6


def test_too_little_to_measure_on_is_refused():
    few = torch.zeros(5, 3, 16, 16), torch.zeros(5, dtype=torch.long)
    with pytest.raises(FingerprintError, match="20 images or more"):
        measure_membership(torch.nn.Identity(), few, few)
    with pytest.raises(FingerprintError, match="only one pixel value"):
        measure_reconstruction(Constant(few[0]), few[0], few[0])
    with pytest.raises(FingerprintError, match="SSIM needs 11 by 11 pixels, got 8 by 20"):
        structural_similarity(torch.rand(1, 1, 8, 20), torch.rand(1, 1, 8, 20), 1.0)
