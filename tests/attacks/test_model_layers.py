import math

import pytest
import torch

from hf_fingerprint.attacks.model_layers import group_by_layer, layer_of, reinitialize_tensors
from tests.helpers.attackers import CNN, VIT, changed, fresh


@pytest.mark.parametrize("architecture", [CNN, VIT, "test_resnet"])
def test_every_tensor_is_in_one_layer_and_the_classifier_is_the_last(architecture):
    state = fresh(architecture)

    layers = group_by_layer(state)

    assert [name for layer in layers for name in layer] == list(state)
    assert {layer_of(name) for name in layers[-1]} <= {"head", "classifier", "fc"}
    assert len(layers) > 10


def test_what_has_no_weight_goes_with_the_layer_before():
    shapes = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "bn.bias": (4,), "fc.bias": (2,), "fc.weight": (2, 4)}

    layers = group_by_layer({name: torch.ones(shape) for name, shape in shapes.items()})

    assert layers == [["conv.weight", "bn.weight", "bn.bias"], ["fc.bias", "fc.weight"]]


def test_layers_begun_anew_have_fan_in_variance_and_neutral_norms():
    state = {
        "conv.weight": torch.zeros(200, 16, 3, 3),
        "fc.weight": torch.zeros(300, 400).half(),
        "fc.bias": torch.full((300,), 5.0),
        "bn.weight": torch.full((16,), 5.0),
        "bn.running_mean": torch.full((16,), 5.0),
        "bn.running_var": torch.full((16,), 5.0),
        "bn.num_batches_tracked": torch.tensor(5),
        "kept.weight": torch.full((3, 3), 5.0),
    }

    after = reinitialize_tensors(state, [name for name in state if name != "kept.weight"], 0)

    assert float(after["conv.weight"].std()) == pytest.approx(math.sqrt(2 / (16 * 9)), rel=0.03)
    assert float(after["fc.weight"].float().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.03)
    assert {name: after[name].unique().tolist() for name in state if after[name].ndim < 2} == {
        "fc.bias": [0.0],
        "bn.weight": [1.0],
        "bn.running_mean": [0.0],
        "bn.running_var": [1.0],
        "bn.num_batches_tracked": [0],
    }
    assert {name: t.dtype for name, t in after.items()} == {name: t.dtype for name, t in state.items()}
    assert "kept.weight" not in changed(state, after)
    assert after["kept.weight"].data_ptr() != state["kept.weight"].data_ptr()
