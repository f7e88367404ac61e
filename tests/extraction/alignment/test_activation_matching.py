import pytest
import timm
import torch

from hf_fingerprint.extraction.alignment.activation_matching import record_activation_pairs
from hf_fingerprint.models import BuiltModel


def built(size: int) -> BuiltModel:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    return BuiltModel(model, (3, size, size), half, half, lambda image: image)


@pytest.mark.parametrize(("size", "last"), [(32, 256), (64, 784)])
def test_a_late_layer_of_small_images_is_seen_in_many_of_them(size, last):
    base = built(size)
    convolutions = [n for n, m in base.module.named_modules() if isinstance(m, torch.nn.Conv2d)]

    seen = record_activation_pairs(base, base.module, {name: name for name in convolutions})

    assert list(seen) == convolutions
    ours, theirs = seen[convolutions[-1]]
    assert ours.inputs.shape[1] == ours.outputs.shape[1] == last
    assert (ours.outputs == theirs.outputs).all()
    assert all(768 <= one.inputs.shape[1] <= 768 + 256 for one, _ in list(seen.values())[:3])
