"""Quantized weights of a suspect are one float tensor each, whatever library saved them."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints.dequantized import DequantizedCheckpoint
from hf_fingerprint.checkpoints.reader import block_rows, open_checkpoint
from hf_fingerprint.errors import CheckpointError
from tests.helpers.forms import FORMS, copy_weights, kind_of


# the largest root mean square error of a weight that is quantized, in its standard deviations
LARGEST_ERRORS = {
    "vit/made/affine_quantized_int4.pth": 0.11,
    "vit/made/bitsandbytes_int8.safetensors": 0.01,
    "vit/made/bitsandbytes_nf4.safetensors": 0.1,
    "vit/made/compressed_int4.safetensors": 0.11,
    "vit/made/compressed_int8.safetensors": 0.01,
    "vit/made/compressed_nvfp4.safetensors": 0.11,
    "vit/made/hqq_4bit.safetensors": 0.1,
    "vit/made/hqq_4bit_nested.pt": 0.1,
    "vit/made/quanto_qint2.safetensors": 0.7,
    "vit/made/quanto_qint4.safetensors": 0.2,
    "vit/made/quanto_qint8.safetensors": 0.01,
    "vit/made/torchao_float8.safetensors": 0.03,
    "vit/made/torchao_int8.safetensors": 0.01,
    "vit/made/torchao_int8_dynamic.pth": 0.01,
    "conv/made/quanto_qint4.safetensors": 0.2,
}


def opened(path):
    return open_checkpoint(path, suspect=True)


def read(checkpoint, name):
    info = checkpoint.tensors[name]
    assert info.dtype == "F32"
    return checkpoint.read(info).view(np.float32).reshape(info.shape)


def saved(tmp_path, **tensors):
    path = tmp_path / "model.safetensors"
    save_file({name.replace("__", "."): np.asarray(each) for name, each in tensors.items()}, path)
    return path


@pytest.mark.parametrize("form", LARGEST_ERRORS)
def test_each_form_holds_the_weights_of_the_copy_under_their_names(form):
    path = FORMS / form
    weights = {name: each for name, each in copy_weights(kind_of(path)).items() if each.dtype == np.float32}
    errors = {}
    with opened(path) as suspect:
        assert {name for name, info in suspect.tensors.items() if info.dtype == "F32"} == set(weights)
        for name, expected in weights.items():
            found = read(suspect, name)
            assert found.size == expected.size
            error = found.reshape(expected.shape) - expected
            errors[name] = float(np.sqrt(np.mean(error**2)) / max(expected.std(), 1e-6))
        stored = suspect.container.dtypes

    quantized = [error for error in errors.values() if error]
    assert len(quantized) >= 8
    assert max(quantized) < LARGEST_ERRORS[form]
    assert len(stored) > 1  # and how they are stored is shown


@pytest.mark.parametrize("form", list(LARGEST_ERRORS)[:3])
def test_blocks_are_rows_of_the_whole(form):
    with opened(FORMS / form) as suspect:
        info = suspect.tensors["blocks.0.mlp.fc1.weight"]
        whole = suspect.read(info)
        first = info.row_bytes * 3
        np.testing.assert_array_equal(suspect.read(info, first, first + 100), whole[first : first + 100])
        for rows, raw in suspect.blocks(info):
            np.testing.assert_array_equal(raw, whole[rows.start * info.row_bytes : rows.stop * info.row_bytes])


def test_integers_without_a_known_scheme_stay_integers(tmp_path):
    codes = np.ones((4, 8), np.int8)
    path = saved(tmp_path, a__weight=codes, a__factor=np.ones(4, np.float32), b__weight=codes, b__SCB=np.ones(5))

    with opened(path) as suspect:
        assert not isinstance(suspect, DequantizedCheckpoint)
        assert suspect.tensors["a.weight"].dtype == "I8"
        assert suspect.tensors["b.weight"].dtype == "I8"


def test_the_rest_of_a_file_is_read_unchanged(tmp_path):
    path = saved(
        tmp_path, a__weight=np.full((4, 8), 127, np.int8), a__SCB=np.arange(4, dtype=np.float32), b=np.arange(3)
    )

    with opened(path) as suspect:
        assert list(suspect.tensors) == ["a.weight", "b"] or list(suspect.tensors) == ["b", "a.weight"]
        assert suspect.read(suspect.tensors["b"]).view(np.int64).tolist() == [0, 1, 2]
        out = np.empty(200, np.uint8)
        assert suspect.read(suspect.tensors["a.weight"], out=out).base is out
        assert read(suspect, "a.weight")[:, 0].tolist() == [0, 1, 2, 3]
        assert suspect.stored is suspect  # what is run and measured is what was dequantized
        assert json.loads(suspect.state())[0][0] == "model.safetensors"


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    codes, scales = np.ones((4, 8), np.int8), np.ones((4, 1), np.float32)
    path = saved(tmp_path, **{"a__weight._data": codes, "a__weight._scale": scales, "a__weight": scales})

    with opened(path) as suspect:
        assert sorted(suspect.tensors) == ["a.weight", "a.weight#2"]


def test_a_tensor_serves_one_weight(tmp_path):
    """Two schemes that claim the same codes would let a file of one tensor stand for any number."""
    codes, scales = np.ones((4, 8), np.int8), np.ones((4, 1), np.float32)
    path = saved(tmp_path, a__weight=codes, a__weight_scale=scales, a__weight_scale_inv=scales, a__SCB=scales[:, 0])

    with opened(path) as suspect:
        assert sum(name.startswith("a.weight") and "scale" not in name for name in suspect.tensors) == 1


def test_rows_too_long_to_compute_are_left_as_codes(tmp_path):
    path, size = tmp_path / "model.safetensors", 1 << 26
    header = json.dumps(
        {
            "a.SCB": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "a.weight": {"dtype": "I8", "shape": [1, size], "data_offsets": [4, 4 + size]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 12 + len(header) + size)

    with opened(path) as suspect:
        assert suspect.tensors["a.weight"].dtype == "I8"


def test_a_file_that_shrinks_while_it_is_read_is_an_error_of_this_package(tmp_path):
    path = saved(tmp_path, a__weight=np.ones((4, 8), np.int8), a__SCB=np.ones(4, np.float32))
    with opened(path) as suspect:
        assert isinstance(suspect, DequantizedCheckpoint)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(CheckpointError):
            for rows in block_rows(suspect.tensors["a.weight"]):
                suspect.read(suspect.tensors["a.weight"], rows.start * 32, rows.stop * 32)


def test_a_base_with_tensor_subclasses_is_still_refused():
    with pytest.raises(CheckpointError, match="a wrapper subclass"):
        open_checkpoint(FORMS / "vit/made/torchao_int8_dynamic.pth")
