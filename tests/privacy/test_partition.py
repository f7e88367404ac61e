import pytest
import timm
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.privacy import Partition


SIZE = (3, 32, 32)


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn((count, *SIZE), generator=torch.Generator().manual_seed(1))


def transformers_vit() -> torch.nn.Module:
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    return ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8, num_labels=10))


def transformers_resnet() -> torch.nn.Module:
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10)
    return ResNetForImageClassification(config)


@pytest.mark.parametrize(
    ("build", "at"),
    [
        (resnet, "layer1"),
        (resnet, "layer2.0"),
        (lambda: timm.create_model("test_vit", img_size=32, num_classes=10), "blocks.1"),
        (lambda: timm.create_model("test_efficientnet", num_classes=10), "blocks.2"),
        (transformers_vit, "vit.layers.1"),
        (transformers_resnet, "resnet.encoder.stages.0"),
    ],
)
def test_client_and_server_part_make_the_whole_model(build, at):
    model = build().eval()
    partition = Partition(model, at, SIZE)

    features = partition.client_part(images())
    flatten_features = model(images())

    assert features.shape[1:] == partition.shape
    assert not features.requires_grad
    assert torch.allclose(
        partition.server_part(features), getattr(flatten_features, "logits", flatten_features), atol=1e-5
    )


def test_the_halves_share_no_parameter_and_leave_none_out():
    model = resnet()
    partition = Partition(model, "layer1", SIZE)

    client_part = {name for name, _ in model.named_parameters()} & partition.client_tensors
    server_part = set(partition.server_parameters())

    assert client_part | server_part == {name for name, _ in model.named_parameters()}
    assert not client_part & server_part
    assert {name.split(".")[0] for name in client_part} == {"conv1", "bn1", "layer1"}
    assert {"bn1.running_mean", "layer1.0.bn1.running_var"} <= partition.client_tensors


def test_the_tokens_added_before_the_cut_belong_to_the_client_part():
    partition = Partition(timm.create_model("test_vit", img_size=32, num_classes=10), "blocks.0", SIZE)

    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= partition.client_tensors
    assert "head.weight" in partition.server_parameters()


def test_training_the_server_part_leaves_the_client_part_unchanged():
    model = resnet()
    partition = Partition(model, "layer1", SIZE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(partition.server_parameters().values(), 1e-2)

    model.train()
    features = partition.client_part(images())
    partition.server_part(features).square().mean().backward()
    optimizer.step()

    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & partition.client_tensors
    assert {"layer4.0.bn1.running_mean", "fc.weight"} <= changed
    assert model.bn1.training, "the mode is restored"


def test_cutting_leaves_the_model_as_it_was():
    model = resnet().train()
    for parameter in model.layer1.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    Partition(model, "layer2", SIZE)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and model.layer3.training
    assert [p.requires_grad for p in model.parameters()] == ["layer1" not in n for n, _ in model.named_parameters()]
    assert not any(module._forward_hooks for module in model.modules())


class Stub(torch.nn.Module):
    """A classifier with a choice of faults."""

    def __init__(self, fault: str):
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 4, 3)
        self.idle, self.fault = torch.nn.Identity(), fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.one(x)
        if self.fault == "around":
            hidden = hidden + x
        if self.fault == "shared":
            hidden = self.one(torch.relu(hidden)) + hidden
        return self.two(hidden).mean((2, 3)) if self.fault != "maps" else self.two(hidden)


@pytest.mark.parametrize(
    ("fault", "at", "sentence"),
    [
        ("none", "on", "The model has no module 'on' to cut at: choose one"),
        ("none", "", "no module ''"),
        ("none", "idle", "idle is not called when the model runs"),
        ("around", "one", "A branch bypasses one"),
        ("maps", "one", "The model returns no logits"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(fault, at, sentence):
    with pytest.raises(FingerprintError, match=sentence):
        Partition(Stub(fault), at, SIZE)


def test_a_parameter_of_both_sides_is_refused():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 12), torch.nn.ReLU(), torch.nn.Linear(12, 12))
    model[3].weight = model[1].weight

    with pytest.raises(FingerprintError, match=r"1\.weight is used on both sides of 2: choose another module"):
        Partition(model, "2", (3, 2, 2))
