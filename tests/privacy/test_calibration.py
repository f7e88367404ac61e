import pytest
import timm
import torch

from examples._common.real_inputs import digits
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import (
    Bottleneck,
    Partition,
    calibrate_noise,
    measure_reconstruction,
    train_against_adversary,
    train_decoder,
    train_denoiser,
)


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scene():
    """A model that knows digits a little, cut; the features of public images; a bottleneck."""
    from examples._common.training import fine_tune

    torch.manual_seed(0)
    images, labels = digits(32)
    model = timm.create_model("test_resnet", num_classes=10)
    fine_tune(model, images[:500], labels[:500], 2e-3, 60)
    partition = Partition(model, "layer1", (3, 32, 32))
    return partition, images, partition.client_part(images)


def narrow(scene: tuple[Partition, torch.Tensor, torch.Tensor]) -> Bottleneck:
    partition, _, features = scene
    bottleneck = Bottleneck(partition.shape, 8)
    bottleneck.init_principal_components(features[:1000])
    return bottleneck


@pytest.mark.slow
def test_the_noise_is_what_the_target_needs_on_images_not_seen_before(scene):
    _, images, features = scene
    bottleneck, tries = narrow(scene), []

    found = calibrate_noise(
        bottleneck, features[:1000], images[:1000], 0.4, steps=60, tries=4, progress=lambda *step: tries.append(step)
    )
    decoder = train_decoder(bottleneck.send, features[:1000], images[:1000], 60, seed=3)
    private = measure_reconstruction(decoder, bottleneck.send(features[1000:]), images[1000:])

    assert found.sigma == pytest.approx(bottleneck.sigma) and 0.25 < found.sigma < 32
    assert 0.2 < found.reconstruction.ssim <= 0.4
    assert private.ssim < 0.45
    assert found.bits_per_image == bottleneck.bits_per_image
    assert tries == [("calibrating the noise", number, 4) for number in (1, 2, 3, 4)]
    assert found.to_dict()["reconstruction"] == found.reconstruction.to_dict()


@pytest.mark.slow
def test_training_against_the_adversary_hides_more_and_keeps_the_task(scene):
    partition, images, features = scene
    bottleneck = narrow(scene)
    bottleneck.sigma = 1.0
    weights = {name: tensor.clone() for name, tensor in partition.model.state_dict().items()}

    def leak_and_keep() -> tuple[float, float]:
        torch.manual_seed(4)
        decoder = train_decoder(bottleneck.send, features[:1000], images[:1000], 60, seed=3)
        drawn = measure_reconstruction(decoder, bottleneck.send(features[1000:]), images[1000:])
        denoiser = train_denoiser(bottleneck, features[:1000], 50)
        with torch.no_grad():
            guess, right = (
                partition.server_part(f) for f in (denoiser(bottleneck.send(features[1000:])), features[1000:])
            )
        return drawn.ssim, float((guess.argmax(1) == right.argmax(1)).double().mean())

    before = leak_and_keep()
    denoiser = train_denoiser(bottleneck, features[:1000], 50)
    train_against_adversary(partition, bottleneck, denoiser, features[:1000], images[:1000], 60, 2.0, 2e-2)
    after = leak_and_keep()

    assert after[0] < before[0] - 0.03
    assert after[1] > before[1] - 0.1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in partition.model.state_dict().items())
    assert not bottleneck.squeeze.requires_grad


@pytest.mark.parametrize("target", [0.0, 1.0, float("nan")])
def test_a_target_out_of_range_is_refused(scene, target):
    with pytest.raises(FingerprintError, match="target_ssim must be between 0 and 1"):
        calibrate_noise(narrow(scene), scene[2], scene[1], target)


def test_a_target_below_what_images_have_in_common_is_refused(scene):
    _, images, features = scene
    with pytest.raises(FingerprintError, match="the images are too similar to each other, so choose a higher target"):
        calibrate_noise(narrow(scene), features[:100], images[:100], 0.001, steps=30, tries=2)
