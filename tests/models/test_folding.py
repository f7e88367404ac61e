import copy

import pytest
import timm
import torch

from hf_fingerprint.models import fold_batch_norms


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
    return model


def norms(model: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_a_folded_model_has_no_normalizations_and_the_same_logits_and_gradients(name):
    model, images = make(name), torch.randn(3, 3, 64, 64)

    folded = fold_batch_norms(model, images[:2])

    assert norms(model) > 0 == norms(folded)
    results = []
    for each in (model, folded):
        given = images.clone().requires_grad_(True)
        logits = each(given)
        results.append((logits.detach(), torch.autograd.grad(logits.square().sum(), given)[0]))
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()


def test_the_model_itself_does_not_change():
    model = make("tf_efficientnet_lite0")
    before = copy.deepcopy(model)

    fold_batch_norms(model, torch.randn(2, 3, 64, 64))

    assert model.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert any(getattr(module, "inplace", False) for module in model.modules())


class Branched(torch.nn.Module):
    """A model whose convolution is used by more than its normalization."""

    def __init__(self, used: str):
        super().__init__()
        self.used, self.convolution = used, torch.nn.Conv2d(3, 4, 3)
        self.norm, self.other = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
        for norm in (self.norm, self.other):
            norm.running_var.uniform_(2, 3)
            norm.running_mean.normal_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = self.convolution(images)
        if self.used == "by a sum":
            made = made + self.norm(made)
        elif self.used == "by two normalizations":
            made = self.other(made) * self.norm(made)
        else:
            made = self.norm(torch.relu_(made))
        return made.mean((2, 3))


@pytest.mark.parametrize("used", ["by a sum", "by two normalizations", "changed in place"])
def test_what_folding_would_change_is_not_folded(used):
    torch.manual_seed(0)
    model, images = Branched(used).eval(), torch.randn(2, 3, 16, 16)

    before = model(images)

    assert fold_batch_norms(model, images) is model
    assert norms(model) == 2
    assert torch.equal(model(images), before)


def test_a_model_without_batch_normalizations_is_not_copied():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Flatten()).eval()

    assert fold_batch_norms(model, torch.randn(2, 3, 8, 8)) is model
    assert model[1].inplace
