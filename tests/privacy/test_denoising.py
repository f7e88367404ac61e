import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from examples._common.real_inputs import digits
from hf_fingerprint import Issuer, trace
from hf_fingerprint.privacy import Bottleneck, Denoiser, ImageNoise, Partition, encode_images, release, train_denoiser
from tests.helpers.small_models import SETTINGS, unlocked_vault


pytestmark = pytest.mark.integration
SIZE = (3, 32, 32)


@pytest.fixture(scope="module")
def images():
    return digits(32)[0][:600]


def cut(architecture: str = "test_resnet", at: str = "layer1", **arguments: object) -> Partition:
    torch.manual_seed(0)
    return Partition(timm.create_model(architecture, num_classes=10, **arguments), at, SIZE)


@pytest.mark.parametrize("partition", [cut(), cut("test_vit", "blocks.0", img_size=32)])
def test_it_comes_nearer_to_the_features_than_the_best_linear_guess(partition, images):
    features = partition.client_part(images)
    bottleneck = Bottleneck(partition.shape, 8, sigma=2.0)
    bottleneck.init_principal_components(features)
    denoiser = train_denoiser(bottleneck, features[:500], 100)

    torch.manual_seed(1)
    public, private = bottleneck.send(features[:500]), bottleneck.send(features[500:])
    guess = denoiser(private)

    axis = 1 if features.dim() == 4 else 2
    rows, wanted = (tensor.movedim(axis, -1).flatten(0, -2) for tensor in (public, features[:500]))
    ones = torch.ones(len(rows), 1)
    fit = torch.linalg.lstsq(torch.cat([rows, ones], 1), wanted).solution
    linear = (private.movedim(axis, -1) @ fit[:-1] + fit[-1]).movedim(-1, axis)
    assert guess.shape == features[500:].shape
    assert (guess - features[500:]).square().mean() < 0.98 * (linear - features[500:]).square().mean()


def test_it_restores_whole_maps_from_codes_without_places(images):
    partition = cut()
    features = partition.client_part(images)
    bottleneck = Bottleneck(partition.shape, 20, sigma=0.5, flatten_features=True)
    bottleneck.init_principal_components(features[:500])
    denoiser = train_denoiser(bottleneck, features[:500], 60)

    guess = denoiser(bottleneck.send(features[500:]))

    spread = (features[500:] - features[:500].mean(0)).square().mean()
    assert guess.shape == features[500:].shape
    assert (guess - features[500:]).square().mean() < 0.6 * spread


def test_a_denoiser_is_the_same_for_the_same_seed(images):
    partition = cut()
    features = partition.client_part(images[:100])
    bottleneck = Bottleneck(partition.shape, 4, sigma=1.0)
    torch.manual_seed(5)
    one = train_denoiser(bottleneck, features, 3, seed=7)
    torch.manual_seed(6)
    other = train_denoiser(bottleneck, features, 3, seed=7)

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_release_is_the_architecture_itself_and_gives_what_the_halves_give(images):
    partition = cut()
    features = partition.client_part(images)
    bottleneck = Bottleneck(partition.shape, 8, sigma=2.0)
    train_back(partition, Denoiser(bottleneck, 16).eval(), bottleneck, images)

    model = release(partition, features)

    ordinary = timm.create_model("test_resnet", num_classes=10).eval()
    ordinary.load_state_dict(model.state_dict())  # same names, same shapes, nothing over
    assert not model.training
    assert torch.allclose(ordinary(images[:50]), partition.server_part(features[:50]), atol=1e-4)
    assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_statistics_are_those_of_public_features_without_noise(images):
    partition = cut()
    client_part = {n: t.clone() for n, t in partition.model.state_dict().items() if n in partition.client_tensors}
    first = partition.model.layer2[0].conv1
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output))

    model = release(partition, features := partition.client_part(images[:250]))

    with torch.no_grad():
        partition.server_part(features)
    assert torch.allclose(model.layer2[0].bn1.running_mean, seen[-1].mean((0, 2, 3)), atol=1e-4)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in client_part.items())


def train_back(partition: Partition, restore: torch.nn.Module, bottleneck: Bottleneck, images: torch.Tensor) -> None:
    labels = digits(32)[1][: len(images)]
    codes = encode_images(partition, bottleneck, images, ImageNoise(bytes(32)))
    optimizer = torch.optim.AdamW(partition.server_parameters().values(), 2e-3)
    partition.model.train()
    for step in range(40):
        pick = slice(15 * step, 15 * step + 15)
        optimizer.zero_grad()
        with torch.no_grad():
            features = restore(codes[pick])
        torch.nn.functional.cross_entropy(partition.server_part(features), labels[pick]).backward()
        optimizer.step()


def test_what_was_trained_in_private_is_issued_and_traced_like_any_other(images, tmp_path):
    partition = cut()
    features = partition.client_part(images)
    bottleneck = Bottleneck(partition.shape, 8, sigma=2.0)
    bottleneck.init_principal_components(features)
    train_back(partition, train_denoiser(bottleneck, features, 30), bottleneck, images)
    save_for_hf(release(partition, features), tmp_path / "released", safe_serialization=True)

    vault = unlocked_vault(tmp_path / "vault")
    with Issuer(tmp_path / "released", vault, SETTINGS) as issuer:
        copies = {
            copy.recipient: copy.path for copy in issuer.issue_all(["alice", "bob", "carol"], tmp_path / "copies")
        }
    result = trace(copies["bob"], vault)

    assert [score.recipient for score in result.accused] == ["bob"]
    changed = {
        name
        for name, tensor in load_file(copies["bob"] / "model.safetensors").items()
        if not torch.equal(tensor, partition.model.state_dict()[name])
    }
    assert changed & set(partition.server_parameters()), "marks are in the back"
    again = timm.create_model(f"local-dir:{copies['bob']}", pretrained=True).eval()
    with torch.no_grad():
        agreement = (again(images).argmax(1) == partition.model(images).argmax(1)).double().mean()
    assert agreement > 0.95
