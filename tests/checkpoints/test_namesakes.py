import pytest
import torch

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.tensor_names import normalize_name


SHAPE = (4, 2)


@pytest.fixture
def tensors():
    arrays = {
        "module.blocks.0.mlp.fc1.weight": torch.zeros(SHAPE),
        "vit.encoder.layer.1.intermediate.dense.weight": torch.ones(SHAPE, dtype=torch.float16),
        "blocks.2.mlp.fc1.weight": torch.zeros(SHAPE, dtype=torch.int64),
    }
    with open_checkpoint(arrays) as checkpoint:
        yield checkpoint.tensors


def test_tensors_are_found_by_the_names_of_another_library_and_without_wrappers(tensors):
    namesakes = Namesakes(tensors)

    for name in ("blocks.0.mlp.fc1.weight", "_orig_mod.vit.encoder.layer.0.intermediate.dense.weight"):
        assert namesakes.find(name) is tensors["module.blocks.0.mlp.fc1.weight"]
    assert namesakes.find("blocks.1.mlp.fc1.weight") is tensors["vit.encoder.layer.1.intermediate.dense.weight"]
    assert Namesakes(tensors, normalize_name).find("blocks.1.mlp.fc1.weight") is None


def test_integers_and_missing_names_have_no_namesake(tensors):
    assert Namesakes(tensors).find("blocks.2.mlp.fc1.weight") is None
    assert Namesakes(tensors).find("head.weight") is None


def test_a_namesake_of_another_shape_is_left_out(tensors):
    wanted = {"blocks.0.mlp.fc1.weight": SHAPE, "blocks.1.mlp.fc1.weight": (2, 4), "head.weight": SHAPE}

    assert Namesakes(tensors).find_shaped(wanted) == {
        "blocks.0.mlp.fc1.weight": tensors["module.blocks.0.mlp.fc1.weight"]
    }
