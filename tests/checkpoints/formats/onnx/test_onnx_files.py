"""ONNX files as the public exporters, quantizers and onnxruntime write them."""

from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import FoundTensors, InvalidFileError
from hf_fingerprint.checkpoints.formats.onnx.onnx_files import FORMAT
from hf_fingerprint.checkpoints.formats.registry import FORMATS
from tests.helpers.forms import FORMS, copy_weights, made
from tests.helpers.onnx_models import (
    FLOAT,
    FLOAT16,
    INT8,
    INT64,
    attribute,
    external,
    field,
    graph,
    model,
    node,
    packed,
    tensor,
    varint,
    write,
)


VALUES = np.arange(32, dtype=np.float32).reshape(4, 8)


def load(path: Path) -> tuple[FoundTensors, dict[str, np.ndarray], dict[str, str]]:
    left_out: dict[str, str] = {}
    found = FORMAT.load(path, left_out)
    return found, {name: stored_values(each) for name, each in found.tensors}, left_out


def form(kind: str, name: str) -> dict[str, np.ndarray]:
    return load(FORMS / kind / "made" / name)[1]


def folded(name: str, norm: str) -> np.ndarray:
    """A convolution of the copy with its batch norm, as exporters fold it."""
    copy = copy_weights("conv")
    scale = copy[f"{norm}.weight"] / np.sqrt(copy[f"{norm}.running_var"] + 1e-5)
    return copy[f"{name}.weight"] * scale[:, None, None, None]


def nearest(wanted: np.ndarray, found: dict[str, np.ndarray]) -> np.ndarray:
    """Of the tensors of this shape, or its transpose, the one with the smallest error."""
    either = [transposed for each in found.values() if each.ndim == wanted.ndim for transposed in (each, each.T)]
    fitting = [each for each in either if each.shape == wanted.shape]
    return min(fitting, key=lambda each: float(np.abs(each - wanted).max()))


def matrices(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: each for name, each in weights.items() if each.ndim in (2, 4) and each.size > max(each.shape)}


@pytest.mark.parametrize("path", made("*.onnx"), ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_each_form_is_recognized_and_read_in_full(path):
    _, tensors, left_out = load(path)

    head = path.read_bytes()[:512]
    assert [each.name for each in FORMATS if each.matches(head, Path("unnamed"))] == ["ONNX"]
    assert not left_out
    copy = matrices(copy_weights(path.parent.parent.name))
    sizes = sorted(each.size for each in matrices(tensors).values())
    assert sizes == sorted(each.size for each in copy.values())
    assert all(np.isfinite(each).all() for each in tensors.values())


def test_a_legacy_export_has_the_weights_of_the_copy():
    found, tensors, _ = load(FORMS / "conv/made/legacy.onnx")

    assert found.producer == "pytorch 2.14.1"
    np.testing.assert_array_equal(tensors["fc.weight"], copy_weights("conv")["fc.weight"])
    np.testing.assert_allclose(nearest(folded("conv1.6", "bn1"), tensors), folded("conv1.6", "bn1"), rtol=1e-5)


def test_external_data_is_read_from_the_file_next_to_the_model():
    path = FORMS / "conv/made/external.onnx"
    found, tensors, _ = load(path)

    assert [each.name for each in found.companions] == ["external.onnx.data"]
    assert {"fc.weight", "conv1.6.weight"} <= set(tensors)
    for wanted in matrices(form("conv", "legacy.onnx")).values():
        np.testing.assert_allclose(nearest(wanted, tensors), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "steps"), [("fp16", 2000), ("uint8_dynamic", 254), ("int8_qdq", 254), ("int8_qoperator", 254),
                        ("int8_qdq_optimized", 254)]
)  # fmt: skip
def test_weights_of_few_bits_are_within_half_a_step(name, steps):
    found = form("conv", f"{name}.onnx")

    for wanted in form("conv", "legacy.onnx").values():
        if wanted.ndim > 1:
            assert np.abs(nearest(wanted, found) - wanted).max() <= 2.01 * np.abs(wanted).max() / steps


def test_weights_quantized_by_channel_are_within_half_a_step_of_each_channel():
    for name in ("int8_qdq", "int8_qoperator"):
        found = form("conv", f"{name}.onnx")
        for wanted in form("conv", "legacy.onnx").values():
            if wanted.ndim == 4:
                errors = np.abs(nearest(wanted, found) - wanted).max((1, 2, 3))
                assert (errors <= 1.02 * np.abs(wanted).max((1, 2, 3)) / 254).all()
            elif wanted.ndim == 1:  # int32
                assert np.abs(nearest(wanted, found) - wanted).max() < 0.002


@pytest.mark.parametrize(
    ("name", "error"), [("q4_zeros", 0.07), ("int4_qdq", 0.07), ("nf4", 0.14), ("q2", 0.3),
                        ("int8_dynamic_optimized", 0.004)]
)  # fmt: skip
def test_weights_of_few_bits_in_blocks_are_near_the_copy(name, error):
    found, copy = form("vit", f"{name}.onnx"), copy_weights("vit")

    for block in range(2):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            wanted = copy[f"blocks.{block}.{layer}.weight"]
            difference = np.abs(nearest(wanted, found) - wanted)
            assert 0 < difference.max() <= error * np.abs(wanted).max()


def test_numbers_in_each_typed_field_are_read(tmp_path):
    halves = VALUES.astype(np.float16)
    tensors = [
        tensor("floats", None, FLOAT, (4, 8), field(4, VALUES.tobytes())),
        tensor("halves", None, FLOAT16, (4, 8), field(5, packed(halves.view(np.uint16).reshape(-1).tolist()))),
        tensor("codes", None, INT8, (4, 8), field(5, packed((VALUES - 16).astype(int).reshape(-1).tolist()))),
        tensor("indices", None, INT64, (4, 8), field(7, packed((VALUES - 16).astype(int).reshape(-1).tolist()))),
    ]
    found, read, left_out = load(write(tmp_path / "a.onnx", model(tensors)))

    assert [name for name, _ in found.tensors] == ["floats", "halves", "codes", "indices"] and not left_out
    for name, shift in (("floats", 0), ("halves", 0), ("codes", 16), ("indices", 16)):
        np.testing.assert_array_equal(read[name] + shift, VALUES)
    assert found.producer == "hand 1.0"


def test_constants_subgraphs_and_functions_are_read(tmp_path):
    constant = node("Constant", [], ["constant"], extra=attribute("value", tensor("", VALUES), 5))
    floats = node("Constant", [], ["floats"], extra=attribute("value_floats", VALUES[0].tobytes(), 7))
    branch = node("If", ["which"], ["out"], extra=attribute("then_branch", graph([tensor("inner", VALUES)]), 6))
    own = node("Constant", [], ["own"], extra=attribute("value", tensor("", VALUES), 5))
    function = field(25, field(1, "layer") + field(7, own))
    _, read, _ = load(write(tmp_path / "a.onnx", model((), [constant, floats, branch], function)))

    assert sorted(read) == ["constant", "floats", "inner", "own"]
    for name in ("constant", "inner", "own"):
        np.testing.assert_array_equal(read[name], VALUES)
    np.testing.assert_array_equal(read["floats"], VALUES[0])


def test_the_last_of_two_tensors_of_one_name_has_the_name(tmp_path):
    _, read, _ = load(write(tmp_path / "a.onnx", model([tensor("w", VALUES), tensor("w", -VALUES)])))

    np.testing.assert_array_equal(read["w"], -VALUES)
    assert len(read) == 2


def test_numbers_that_are_no_weights_are_skipped(tmp_path):
    tensors = [
        tensor("shape", np.int64([1, 2, 3])), tensor("one", np.float32([3])), tensor("bias", np.float32([3, 4]))
    ]  # fmt: skip
    _, read, left_out = load(write(tmp_path / "a.onnx", model(tensors)))

    assert list(read) == ["bias"] and not left_out


def test_external_data_may_not_leave_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(VALUES.tobytes())
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "inside").mkdir()
    (folder / "inside" / "w.data").write_bytes(VALUES.tobytes())
    places = {
        "up": "../secret.data", "absolute": str(tmp_path / "secret.data"), "link": "link.data", "loop": "loop",
        "none": "", "folder": "inside", "missing": "missing.data", "null": "a\0b", "long": "x" * 4000,
        "back": "inside\\w.data", "fine": "inside/w.data",
    }  # fmt: skip
    path = write(folder / "a.onnx", model([external(name, (4, 8), place) for name, place in places.items()]))
    found, read, left_out = load(path)

    assert list(read) == ["fine"]
    np.testing.assert_array_equal(read["fine"], VALUES)
    assert set(left_out) == set(places) - {"fine"}
    assert "outside its folder" in left_out["up"] and "outside its folder" in left_out["link"]
    assert "missing" in left_out["missing"]
    assert found.companions == (folder / "inside" / "w.data",)


def test_external_data_in_the_cache_of_the_hub_is_read(tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "0123" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write(blobs / "a", model([external("w", (4, 8), "model.onnx_data")]))
    write(blobs / "b", VALUES.tobytes())
    (snapshot / "model.onnx").symlink_to(blobs / "a")
    (snapshot / "model.onnx_data").symlink_to(blobs / "b")

    np.testing.assert_array_equal(load(snapshot / "model.onnx")[1]["w"], VALUES)


@pytest.mark.parametrize(("offset", "length"), [(64, 128), (1 << 62, 1), ("-1", 4), ("1e3", 4), (0, 1 << 62)])
def test_external_data_beyond_its_file_is_left_out(tmp_path, offset, length):
    (tmp_path / "w.data").write_bytes(VALUES.tobytes())
    path = write(tmp_path / "a.onnx", model([external("w", (4, 8), "w.data", offset, length)]))

    found, _, left_out = load(path)
    assert not found.tensors and list(left_out) == ["w"]


@pytest.mark.parametrize("dims", [(-1, 8), (1 << 40, 1 << 40), (5, 8), tuple([1] * 70)])
def test_a_tensor_of_an_impossible_shape_is_left_out(tmp_path, dims):
    found, _, left_out = load(write(tmp_path / "a.onnx", model([tensor("w", VALUES, dims=dims)])))

    assert not found.tensors and list(left_out) == ["w"]


def test_deep_subgraphs_and_damaged_files_are_refused(tmp_path):
    inner = graph([tensor("w", VALUES)])
    for _ in range(40):
        inner = graph((), [node("If", [], [], extra=attribute("then_branch", inner, 6))])
    whole = model([tensor("w", VALUES)])
    for content in (field(1, 10) + field(7, inner), whole[:-10], field(1, 10), b"", whole + b"\x0f", b"\xff" * 100):
        with pytest.raises(InvalidFileError):
            load(write(tmp_path / "a.onnx", content))


@pytest.mark.parametrize(
    "head",
    [
        field(1, 5) + field(2, field(1, "input")) + field(500, field(1, b"")),  # Core ML
        field(1, field(1, "node") + field(2, "Placeholder")),  # a TensorFlow graph
        field(1, 1) + field(2, b"\x0a" * 700),  # a SavedModel
        field(1, 32) + field(2, 1) + field(9, bytes(400)),  # one tensor of ONNX
        field(1, 0) + field(7, graph([tensor("w", VALUES)])),
        field(7, b"text") + field(8, b""),
        b"\x00" * 512, b"", b"PK\x03\x04", b'{"a": 1}', varint(1 << 63) * 60,
    ],
)  # fmt: skip
def test_other_files_are_not_taken_for_onnx(head):
    assert not FORMAT.matches(head[:512], Path("model.bin"))


def test_a_model_is_recognized_whatever_the_order_of_its_fields():
    opset, inner = field(8, field(2, 17)), field(7, graph([tensor("w", VALUES)]))

    for content in (opset + inner, inner + opset, field(1, 8) + inner, field(6, "x" * 80) + opset + inner):
        assert FORMAT.matches(content[:512], Path("model.bin"))
    assert FORMAT.matches((field(1, 8) + field(6, "x" * 900))[:512], Path("Model.ONNX"))


def test_companions_are_named_after_the_model():
    names = {
        "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model.onnx.data", "onnx/model.onnx_data_1", "onnx/model.data",
        "onnx/model.bin", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "model.onnx_data", "onnx/config.json",
        "onnx/other.data", "ir/model.onnx", "ir/model.xml", "ir/model.bin",
    }  # fmt: skip

    assert list(FORMAT.companions("onnx/model.onnx", names)) == [
        "onnx/model.bin", "onnx/model.data", "onnx/model.onnx.data", "onnx/model.onnx_data", "onnx/model.onnx_data_1"
    ]  # fmt: skip
    assert list(FORMAT.companions("onnx/model_q4.onnx", names)) == ["onnx/model_q4.onnx_data"]
    assert list(FORMAT.companions("ir/model.onnx", names)) == []
