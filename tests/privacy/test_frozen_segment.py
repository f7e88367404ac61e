import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification

from examples._common.real_inputs import digits
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import Bottleneck, FrozenSegment, Partition, init_task_directions, train_denoiser


pytestmark = pytest.mark.integration
SIZE = (3, 32, 32)


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10)


def transformers_vit() -> torch.nn.Module:
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=10))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn((count, *SIZE), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("build", "at", "deeper"),
    [
        (resnet, "act1", "layer2"),
        (resnet, "layer1", "layer2.0"),
        (lambda: timm.create_model("test_efficientnet", num_classes=10), "blocks.0", "blocks.2"),
        (transformers_vit, "vit.layers.0", "vit.layers.1"),
    ],
)
def test_a_segment_returns_the_models_deeper_features(build, at, deeper):
    model = build().eval()
    partition = Partition(model, at, SIZE)
    segment = FrozenSegment(partition, deeper)

    shown = segment(partition.client_part(images()))

    wanted = Partition(model, deeper, SIZE).client_part(images())
    assert shown.shape[1:] == segment.shape == wanted.shape[1:]
    assert torch.allclose(shown, wanted, atol=1e-5)


def test_it_does_not_change_while_the_server_part_trains():
    partition = Partition(resnet(), "act1", SIZE)
    bottleneck = Bottleneck(partition.shape, 8, flatten_features=True, segment=FrozenSegment(partition, "layer2"))
    features = partition.client_part(images(20))
    before = bottleneck.encode(features)
    optimizer = torch.optim.SGD(partition.server_parameters().values(), 0.1)

    partition.model.train()
    bottleneck.train()  # as a loop does with all that it is given
    for _ in range(3):
        optimizer.zero_grad()
        partition.server_part(features).square().mean().backward()
        optimizer.step()

    assert not torch.allclose(
        Partition(partition.model, "layer2", SIZE).client_part(images()), bottleneck.features_in_segment(features[:4])
    )
    assert torch.equal(bottleneck.encode(features), before)
    assert not any(parameter.requires_grad for parameter in bottleneck.parameters())


def test_it_travels_with_the_bottleneck():
    partition = Partition(resnet(), "act1", SIZE)
    bottleneck = Bottleneck(partition.shape, 8, flatten_features=True, segment=FrozenSegment(partition, "layer1"))
    features = partition.client_part(images(30))
    bottleneck.init_principal_components(features)
    torch.manual_seed(5)
    trained = timm.create_model("test_resnet", num_classes=10)  # of other weights behind the cut
    other = Partition(trained, "act1", SIZE)
    there = Bottleneck(other.shape, 8, flatten_features=True, segment=FrozenSegment(other, "layer1"))

    there.load_state_dict(bottleneck.state_dict())

    assert torch.equal(there.encode(features), bottleneck.encode(features))


def test_codes_through_a_segment_separate_classes_and_denoise_to_the_cut():
    from examples._common.training import fine_tune

    pixels, labels = digits(32)
    model = fine_tune(resnet(), pixels[:500], labels[:500], 2e-3, 60)
    partition = Partition(model, "conv1", SIZE)
    features = partition.client_part(pixels)
    bottleneck = Bottleneck(
        partition.shape, 9, sigma=0.5, flatten_features=True, segment=FrozenSegment(partition, "layer2")
    )

    init_task_directions(partition, bottleneck, features[:1200])
    denoiser = train_denoiser(bottleneck, features[:1200], 20)

    with torch.no_grad():
        guesses = denoiser(bottleneck.send(features[:50]))
    assert guesses.shape == features[:50].shape
    torch.manual_seed(0)
    codes = bottleneck.send(features)
    means = torch.stack([codes[:1200][labels[:1200] == label].mean(0) for label in range(10)])
    assert float((torch.cdist(codes[1200:], means).argmin(1) == labels[1200:]).float().mean()) > 0.75


def test_it_reads_on_from_the_cut_and_not_before_it():
    with pytest.raises(FingerprintError, match="conv1 does not come after layer1: choose a deeper module"):
        FrozenSegment(Partition(resnet(), "layer1", SIZE), "conv1")


def test_codes_with_positions_have_no_segment():
    partition = Partition(resnet(), "act1", SIZE)
    with pytest.raises(FingerprintError, match="needs flatten_features=True"):
        Bottleneck(partition.shape, 8, segment=FrozenSegment(partition, "layer1"))
