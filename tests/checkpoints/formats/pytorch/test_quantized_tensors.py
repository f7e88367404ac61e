"""PyTorch's quantized tensors are dequantized, and modules that pack them give their weights by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef
from hf_fingerprint.checkpoints.formats.pytorch.quantized_tensors import packed_parameters, rebuild_quantized
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor, Storage
from tests.helpers.checkpoint_files import refused
from tests.helpers.forms import FORMS, best_matches, copy_weights, read_tensor


CODES = np.arange(12, dtype=np.int8) - 4


def stored(codes: np.ndarray, dtype: str = "qint8") -> Storage:
    return Storage("0", dtype, codes.size, data=np.ascontiguousarray(codes).view(np.uint8).reshape(-1))


def numbers(values: list[float], dtype: str = "float64") -> LazyTensor:
    raw = np.array(values, {"float64": "<f8", "int64": "<i8"}[dtype]).view(np.uint8)
    return LazyTensor(dtype, (len(values),), (1,), 0, Storage("1", dtype, len(values), data=raw))


def floats_of(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path, suspect=True) as opened:
        assert not opened.left_out
        infos = [info for info in opened.tensors.values() if info.dtype == "F32"]
        return {info.name: to_float32(opened.read(info), "F32").reshape(info.shape) for info in infos}


def test_a_tensor_with_one_scale_is_dequantized():
    tensor = rebuild_quantized(stored(CODES), 0, (3, 4), (4, 1), ("per_tensor_affine", 0.5, -3), False, {})

    assert tensor.unreadable_reason() is None
    np.testing.assert_array_equal(read_tensor(tensor), (CODES.reshape(3, 4) + 3) * np.float32(0.5))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tensor_with_a_scale_for_each_channel_is_dequantized_in_any_layout(axis):
    codes, scales, zeros = CODES.reshape(3, 4), [0.5, 1.0, 2.0, 4.0][: 3 + axis], [0, 1, -1, 2][: 3 + axis]
    across = ("scheme", numbers(scales), numbers(zeros, "int64"), axis)

    tensor = rebuild_quantized(stored(codes.T), 0, (3, 4), (1, 3), across, False, {})  # columns first

    wide = (3, 1) if axis == 0 else (1, 4)
    expected = (codes - np.reshape(zeros, wide)) * np.reshape(scales, wide)
    np.testing.assert_array_equal(read_tensor(tensor), expected.astype(np.float32))


def test_two_codes_in_a_byte_are_taken_apart():
    across = ("scheme", numbers([1.0, 2.0]), numbers([0, 0], "int64"), 0)
    packed = np.array([0x10, 0x32, 0x54], np.uint8)

    tensor = rebuild_quantized(stored(packed, "quint4x2"), 0, (2, 3), (3, 1), across)

    np.testing.assert_array_equal(read_tensor(tensor), [[0, 1, 2], [6, 8, 10]])


@pytest.mark.parametrize(
    ("shape", "strides", "parameters", "reason"),
    [
        ((3, 5), (5, 1), ("s", 1.0, 0), "larger than its storage"),
        ((3, 4), (4, 1), ("s", numbers([1.0, 2.0]), numbers([0.0, 0.0]), 0), "scales of another shape"),
        ((3, 4), (4, 1), ("s", numbers([1.0]), numbers([0.0]), 2), "qint8 of an unknown scheme"),
        ((3, 4), (4, 1), ("s", "1", 0), "qint8 of an unknown scheme"),
        ((3, 4), (4, 1), ("s", LazyTensor("float64", reason="no data"), numbers([0.0]), 0), "no data"),
        ((3, -4), (4, 1), ("s", 1.0, 0), "impossible sizes"),
        (
            (3, 1 << 40),
            (0, 0),
            ("s", *(LazyTensor("float64", (1 << 40,), (0,), 0, numbers([1.0]).storage) for _ in "12"), 1),
            "scales of another shape",
        ),
        ((3, 1 << 61), (0, 0), ("s", numbers([1.0]), numbers([0.0]), 1), "scales of another shape"),
    ],
)
def test_a_tensor_that_does_not_fit_its_scales_or_storage_is_unreadable(shape, strides, parameters, reason):
    assert rebuild_quantized(stored(CODES), 0, shape, strides, parameters).unreadable_reason() == reason


def test_packed_parameters_are_named_by_their_module():
    weight = rebuild_quantized(stored(CODES), 0, (3, 4), (4, 1), ("s", 1.0, 0))
    bias = LazyTensor("float32", (3,), (1,), 0, Storage("2", "float32", 3, data=np.zeros(12, np.uint8)))
    scripted = CallRecord(GlobalRef("__torch__.torch.classes.quantized", "Conv2dPackedParamsBase"), ())
    scripted.state = ("2", [numbers([1.0]), weight], CallRecord(GlobalRef("torch.jit._pickle", "tag"), ([bias], "")))

    assert packed_parameters("fc._packed_params._packed_params", (weight, bias)) == (
        "fc",
        {"weight": weight, "bias": bias},
    )
    name, found = packed_parameters("stem.conv", scripted) or ("", {})
    assert (name, found["weight"], found["bias"]) == ("stem.conv", weight, bias)
    prepacked = CallRecord(GlobalRef("__torch__.torch.classes.xnnpack", "LinearOpContext"), ())
    plain = LazyTensor("float32", (3, 1), (1, 1), 0, bias.storage)
    prepacked.state = (plain, bias, None, 1.0)
    assert packed_parameters("0", prepacked) == ("0", {"weight": plain, "bias": bias})
    assert packed_parameters("pair", (weight, bias)) is None
    assert packed_parameters("fc._packed_params", (bias, bias)) is None


@pytest.mark.parametrize("name", ["vit/made/dynamic_int8.pt", "vit/made/static_int8_per_tensor.ptl"])
def test_quantized_models_give_every_weight_to_half_a_step(name):
    found = floats_of(FORMS / name)

    assert min(best_matches(found, "vit").values()) > 0.999
    for key in ("patch_embed.proj.weight", "head.weight"):
        weight = copy_weights("vit")[key]
        near = [value for value in found.values() if value.shape == weight.shape]
        step = 2 * np.abs(weight).max() / 255
        assert min(np.abs(value - weight).max() for value in near) <= 0.51 * step


def test_a_quantized_torchscript_has_the_weights_of_the_frozen_one():
    exact = floats_of(FORMS / "conv/made/frozen_torchscript.pt")  # both with folded batch norms
    found = floats_of(FORMS / "conv/made/static_int8_torchscript.pt")

    kernels = [value for value in exact.values() if value.ndim > 1]
    assert len(kernels) == len([name for name, value in copy_weights("conv").items() if value.ndim > 1])
    for kernel in kernels:
        near = [value for value in found.values() if value.shape == kernel.shape]
        step = 2 * np.abs(kernel).max() / 255
        assert min(np.abs(value - kernel).max() for value in near) <= 0.51 * step
    assert found["fc.weight"].shape == (5, 32)
    assert {name for name in found if name.endswith(".bias")} >= {"conv1.0.bias", "fc.bias"}


@pytest.mark.filterwarnings("ignore")
def test_a_base_is_not_dequantized(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)

    assert "qint8" in refused(open_checkpoint, path)
