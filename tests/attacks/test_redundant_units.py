import pytest
import timm
import torch

from hf_fingerprint import FingerprintError
from hf_fingerprint.attacks import BatchNormFolding, DummyUnits
from hf_fingerprint.attacks.symmetries import hidden_channels


def perceptron(state, x, block="blocks.0.mlp"):
    """What a block's perceptron gives, whatever its width."""
    hidden = torch.nn.functional.gelu(x @ state[f"{block}.fc1.weight"].T + state[f"{block}.fc1.bias"])
    return hidden @ state[f"{block}.fc2.weight"].T + state[f"{block}.fc2.bias"]


@pytest.mark.parametrize("strength", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("kind", ["zero", "cancelling", "split"])
def test_added_units_change_nothing(kind, strength):
    torch.manual_seed(0)
    state = timm.create_model("test_vit").state_dict()
    x = torch.randn(5, state["blocks.0.mlp.fc1.weight"].shape[1])

    attacked = DummyUnits(strength, kind)(state)

    assert len(attacked["blocks.0.mlp.fc1.weight"]) > len(state["blocks.0.mlp.fc1.weight"])
    assert perceptron(attacked, x) == pytest.approx(perceptron(state, x), abs=1e-4)
    assert attacked.keys() == state.keys()


def test_the_channels_of_a_residual_network_grow_with_their_normalizations():
    state = timm.create_model("test_resnet").state_dict()

    attacked = DummyUnits(0.5)(state)

    for channels in hidden_channels(state):
        lengths = {len(attacked[name]) for name in channels.rows} | {attacked[n].shape[1] for n in channels.columns}
        assert lengths == {channels.count + max(2, round(0.5 * channels.count)) // 2 * 2}


@pytest.mark.parametrize(("architecture", "eps"), [("resnet18", 1e-5), ("tf_efficientnet_lite0", 1e-3)])
def test_folded_normalizations_are_gone_and_the_convolutions_do_what_both_did(architecture, eps):
    torch.manual_seed(0)
    made = timm.create_model(architecture, num_classes=10).eval()
    with torch.no_grad():
        for name, values in made.state_dict().items():
            if "bn" in name and values.ndim == 1:
                values.add_(0.3 * torch.rand_like(values))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = made(x)

    attacked = BatchNormFolding(eps)(made.state_dict())

    assert not [name for name in attacked if name.endswith("running_var")]
    for name, part in list(made.named_modules()):
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
            torch.nn.init.ones_(part.weight)
            torch.nn.init.zeros_(part.bias)
            part.eps = 0.0
        if isinstance(part, torch.nn.Conv2d):
            part.weight.data = attacked[f"{name}.weight"]
            part.bias = torch.nn.Parameter(attacked[f"{name}.bias"])
    with torch.no_grad():
        assert made(x) == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("attack", [BatchNormFolding(), DummyUnits()])
def test_a_model_without_either_is_refused_in_a_sentence(attack):
    with pytest.raises(FingerprintError, match="found no"):
        attack({"weight": torch.zeros(3, 3)})
