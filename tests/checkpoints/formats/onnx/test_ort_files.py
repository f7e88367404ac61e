"""onnxruntime's files, as its tool writes them and made by hand."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.onnx.ort_files import FORMAT
from tests.helpers.flatbuffers import flatbuffer
from tests.helpers.folded_weights import closest_error, folded_weights
from tests.helpers.forms import FORMS


FLOAT32, INT8, FLOAT16 = 1, 3, 10
INTEGER, TENSOR, SUBGRAPH = 2, 4, 5
ERRORS = {"conv/made/nchwc.ort": 1e-6, "conv/made/int8_qdq.ort": 0.01, "vit/made/q4.ort": 0.2}


def read(path):
    left_out = {}
    found = FORMAT.load(path, left_out)
    return {name: stored_values(tensor) for name, tensor in found.tensors}, left_out, found.producer


@pytest.mark.parametrize("form", ERRORS)
def test_every_layer_is_read_as_the_converter_wrote_it(form):
    tensors, left_out, producer = read(FORMS / form)

    assert not left_out
    assert producer in ("pytorch 2.14.1", "onnx.quantize 0.1.0")
    for name, expected in folded_weights(form.split("/")[0]):
        error = min(closest_error(tensors.values(), each) for each in (expected, expected.T))
        assert error <= ERRORS[form], name


def constant(name, values, kind=FLOAT32, dims=None, **more):
    values = np.asarray(values)
    shape = np.int64(values.shape if dims is None else dims)
    return {0: name, 2: shape, 3: ("<i", kind), 4: values.tobytes(), **more.get("slots", {})}


def node(op, inputs=(), outputs=(), attributes=(), domain=""):
    return {0: f"a {op}", 2: domain, 5: op, 8: list(inputs), 9: list(outputs), 10: list(attributes)}


def write(folder, initializers=(), nodes=(), sparse=()):
    path = folder / "model.ort"
    graph = {0: list(initializers), 2: list(nodes), 7: list(sparse)}
    path.write_bytes(flatbuffer({0: "6", 1: {2: "tool", 3: "1.0", 7: graph}}, b"ORTM"))
    return path


def test_the_node_that_uses_integers_tells_their_scale(tmp_path):
    codes = constant("w_quantized", np.int8([[1, -2], [3, 4]]), INT8)
    scale, zero = constant("s", np.float32([0.5, 2])), constant("z", np.int8([0, 1]), INT8)
    axis = {0: "axis", 2: ("<i", INTEGER), 4: ("<q", 0)}
    use = node("DequantizeLinear", ["w_quantized", "s", "z"], ["w"], [axis])

    tensors, left_out, producer = read(write(tmp_path, [codes, scale, zero], [use]))

    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"], [[0.5, -1], [4, 6]])
    assert (left_out, producer) == ({}, "tool 1.0")


def test_subgraphs_and_attributes_hold_weights_too(tmp_path):
    values = np.float32([1, 2])
    inner = {0: [constant("inner", values)]}
    branch = node("If", attributes=[{0: "then_branch", 2: ("<i", SUBGRAPH), 7: inner}, {0: "other", 12: [inner]}])
    held = node("Custom", attributes=[{0: "held", 2: ("<i", TENSOR), 6: constant("", values, FLOAT32)}])

    tensors, _, _ = read(write(tmp_path, [constant("w", values)], [branch, held]))

    assert set(tensors) == {"w", "a Custom.held", "inner", "inner~3"}
    for each in tensors.values():
        np.testing.assert_array_equal(each, values)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (constant("w", np.float32([1, 2]), dims=[3]), "larger than its storage"),
        (constant("w", np.float32([1, 2]), dims=[2, -1]), "an invalid shape"),
        (constant("w", np.zeros(20, np.float32), 14), "larger than its storage"),
        (constant("w", np.zeros(20, np.float32), 99), "dtype number 99"),
        (constant("w", np.float32([1, 2]), slots={6: ("<q", 0)}), "in a separate file"),
    ],
)
def test_what_can_not_be_read_is_left_out_by_name(tmp_path, tensor, reason):
    tensors, left_out, _ = read(write(tmp_path, [tensor], sparse=[{0: constant("thin", [1.0])}]))

    assert (tensors, left_out) == ({}, {"w": reason, "thin": "sparse"})


def test_subgraphs_are_not_nested_forever(tmp_path):
    graph = {}
    for _ in range(40):
        graph = {2: [node("If", attributes=[{0: "then_branch", 7: graph}])]}

    with pytest.raises(InvalidFileError, match="nested 32 deep"):
        read(write(tmp_path, nodes=graph[2]))


def test_a_damaged_file_is_an_error(tmp_path):
    whole = (FORMS / "vit/made/q4.ort").read_bytes()
    path = tmp_path / "model.ort"
    for size in (0, 4, 8, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidFileError, match="cut off"):
            FORMAT.load(path, {})
    path.write_bytes(flatbuffer({0: "6", 1: {2: "tool"}}, b"ORTM"))
    with pytest.raises(InvalidFileError, match="no graph"):
        FORMAT.load(path, {})


def test_files_are_recognized_by_their_identifier():
    assert FORMAT.matches((FORMS / "conv/made/nchwc.ort").read_bytes()[:512], FORMS)
    assert not FORMAT.matches(b"\0\0\0\0TFL3", FORMS)
