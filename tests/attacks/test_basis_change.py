import pytest
import timm
import torch

from hf_fingerprint import FingerprintError
from hf_fingerprint.attacks import Attacker, HeadBasisChange, StreamRotation


def model(architecture):
    """One whose normalizations do something."""
    torch.manual_seed(0)
    made = timm.create_model(architecture, num_classes=10).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def outputs(made, state=None):
    if state is not None:
        made.load_state_dict(state)
    with torch.no_grad():
        return made(torch.randn(2, *made.default_cfg["input_size"], generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "attack", [HeadBasisChange(1.0, 2), HeadBasisChange(0.1, 2, seed=3), StreamRotation(), StreamRotation(0.1)]
)
@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2"])
def test_the_function_stays_and_the_weights_do_not(architecture, attack):
    made = model(architecture)
    before, state = outputs(made), {name: t.clone() for name, t in made.state_dict().items()}

    attacked = attack(state)

    assert outputs(made, attacked) == pytest.approx(before, abs=1e-5)
    weight = "blocks.0.attn.qkv.weight"
    assert (attacked[weight] - state[weight]).norm() > 0.05 * state[weight].norm()
    assert all(torch.equal(state[name], tensor) for name, tensor in model(architecture).state_dict().items())


def test_the_attackers_model_says_how_many_heads_there_are():
    made = model("test_vit")
    attacker = Attacker(lambda: timm.create_model("test_vit", num_classes=10), torch.zeros(0), torch.zeros(0))
    state = made.state_dict()

    known, student_logits = (
        HeadBasisChange(1.0, made.blocks[0].attn.num_heads)(state),
        HeadBasisChange()(state, attacker),
    )

    assert all(torch.equal(known[name], student_logits[name]) for name in known)
    with pytest.raises(FingerprintError, match="pass heads, or an Attacker"):
        HeadBasisChange()(state)


@pytest.mark.parametrize("attack", [HeadBasisChange(1.0, 2), StreamRotation()])
def test_a_network_of_convolutions_is_refused_in_a_sentence(attack):
    with pytest.raises(FingerprintError, match="timm vision transformer"):
        attack(timm.create_model("test_resnet").state_dict())
