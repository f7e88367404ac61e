"""DeepSpeed's ZeRO-3 checkpoints, whose weights are partitioned over the files of two ranks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.deepspeed_checkpoints import FORMAT
from tests.helpers.forms import FORMS, copy_weights, read_tensor


MADE = FORMS / "conv/made/zero3"
MAIN = "zero_pp_rank_0_mp_rank_00_model_states.pt"
OPTIMIZER = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    left_out: dict[str, str] = {}
    found = FORMAT.load(path, left_out)
    return {name: read_tensor(tensor) for name, tensor in found.tensors}, left_out


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(MADE, tmp_path / "global_step1"))


def write(folder: Path, shapes: dict[str, torch.Size], ranks: list[list[torch.Tensor]], **more: object) -> Path:
    """A checkpoint with these flat vectors of each rank, which stands for the frozen fragments if there are any."""
    fragments = more.pop("fragments", [{}] * len(ranks))
    for rank, vectors in enumerate(ranks):
        states = {"optimizer_state_dict": {"partition_count": len(ranks), "fp32_flat_groups": vectors}}
        torch.save(states, folder / OPTIMIZER.format(rank))
        model = {"module": {}, "param_shapes": [shapes], "frozen_param_fragments": fragments[rank], **more}
        torch.save(model, folder / MAIN.replace("rank_0_", f"rank_{rank}_"))
    return folder / MAIN


def test_every_tensor_is_joined_from_its_partitions():
    path = MADE / MAIN
    assert FORMAT.matches(path.read_bytes()[:512], path)

    found, left_out = load(path)

    expected = copy_weights("conv")
    assert not left_out
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-8)  # it was trained in bfloat16
    loaded = FORMAT.load(path, {})
    assert loaded.producer.startswith("DeepSpeed 0.")
    assert {each.name for each in loaded.companions} == {OPTIMIZER.format(0), OPTIMIZER.format(1)}


def test_it_is_a_suspect_under_the_name_of_its_first_file():
    with open_checkpoint(MADE / MAIN, suspect=True) as opened:
        assert opened.tensors["fc.weight"].shape == (5, 32)


def test_partitions_are_padded_and_go_on_in_the_next_vector(tmp_path):
    shapes = {"a": torch.Size([3, 1]), "b": torch.Size([5])}  # 2 and 3 elements for each rank
    ranks = [
        [torch.tensor([0.0, 1, 10]), torch.tensor([11.0, 12])],
        [torch.tensor([2.0, -1, 13]), torch.tensor([14.0, -1])],
    ]

    found, _ = load(write(tmp_path, shapes, ranks))

    np.testing.assert_array_equal(found["a"], [[0], [1], [2]])
    np.testing.assert_array_equal(found["b"], [10, 11, 12, 13, 14])


def test_frozen_weights_are_joined_from_the_fragments_of_each_rank(tmp_path):
    fragments = [{"frozen": torch.tensor([1.0, 2])}, {"frozen": torch.tensor([3.0, 0])}]
    ranks = [[torch.zeros(1)], [torch.zeros(1)]]
    path = write(
        tmp_path, {"a": torch.Size([2])}, ranks, fragments=fragments, frozen_param_shapes={"frozen": torch.Size([3])}
    )

    found, _ = load(path)

    np.testing.assert_array_equal(found["frozen"], [1, 2, 3])


def test_a_missing_rank_is_named(folder):
    (folder / OPTIMIZER.format(1)).unlink()

    with pytest.raises(InvalidFileError, match=r"rank_1_.*missing: download"):
        load(folder / MAIN)


@pytest.mark.parametrize("size", [[1 << 40], [1 << 20, 1 << 20], [7]])
def test_a_weight_beyond_the_partitions_is_left_out(tmp_path, size):
    path = write(tmp_path, {"a": torch.Size([2]), "b": torch.Size(size)}, [[torch.ones(2)], [torch.ones(2)]])

    found, left_out = load(path)

    assert list(found) == ["a"]
    assert "zero_to_fp32.py" in left_out["b"]


@pytest.mark.parametrize("count", [0, -1, 1 << 40, "2", None, [1 << 40], []])
def test_an_impossible_number_of_ranks_is_refused(folder, count):
    states = {"optimizer_state_dict": {"partition_count": count, "fp32_flat_groups": [torch.ones(2)]}}
    torch.save(states, folder / OPTIMIZER.format(0))

    with pytest.raises(InvalidFileError):
        load(folder / MAIN)


def test_the_companions_are_the_files_of_all_ranks():
    names = [f"x/{each.name}" for each in MADE.iterdir()] + ["x/optimizer.pt", f"y/{OPTIMIZER.format(1)}"]

    assert sorted(FORMAT.companions(f"x/{MAIN}", names)) == sorted(
        f"x/{each.name}" for each in MADE.iterdir() if each.name != MAIN
    )
    assert not FORMAT.matches(b"PK\x03\x04", Path("zero_pp_rank_1_mp_rank_00_model_states.pt"))
