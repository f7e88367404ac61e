"""TFLite files, as converters write them and made by hand."""

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.tflite.tflite_files import FORMAT
from tests.helpers.flatbuffers import flatbuffer
from tests.helpers.folded_weights import closest_error, folded_weights
from tests.helpers.forms import FORMS


FLOAT32, FLOAT16, INT32, UINT8, STRING, INT16, INT8, INT4, BFLOAT16, INT2 = 0, 1, 2, 3, 5, 7, 9, 17, 18, 19
ERRORS = {  # of a form, root mean square to the weights'
    "conv/made/float32.tflite": 1e-6,
    "conv/made/fp16.tflite": 1e-3,
    "conv/made/int8.tflite": 0.01,
    "conv/made/onnx2tf_int8.tflite": 0.01,
    "conv/made/int4.tflite": 0.2,
    "vit/made/int8_dynamic.tflite": 0.01,
    "vit/made/int8_int16.tflite": 0.01,
    "vit/made/int4_blocks.tflite": 0.2,
}


def read(path):
    left_out = {}
    found = FORMAT.load(path, left_out)
    return [(name, stored_values(tensor)) for name, tensor in found.tensors], left_out, found


@pytest.mark.parametrize("form", ERRORS)
def test_every_layer_is_read_as_the_converter_wrote_it(form):
    tensors, left_out, _ = read(FORMS / form)

    assert not left_out
    for name, expected in folded_weights(form.split("/")[0], layer_norms=True):
        error = closest_error((each for _, each in tensors), np.moveaxis(expected, 1, -1))
        assert error <= ERRORS[form], name


def test_a_sparse_file_holds_the_weights_that_were_not_pruned():
    tensors, left_out, _ = read(FORMS / "conv/made/sparse.tflite")

    assert not left_out
    for name, values in folded_weights("conv"):
        expected = np.moveaxis(values, 1, -1)
        kept = [(each != 0) & np.isclose(each, expected, 1e-4) for _, each in tensors if each.shape == expected.shape]
        assert max(each.mean() for each in kept) > 0.19, name


def test_the_producer_is_the_converter():
    assert read(FORMS / "conv/made/onnx2tf_int8.tflite")[2].producer == "TensorFlow 2.19.0"
    assert read(FORMS / "conv/made/float32.tflite")[2].producer == "MLIR Converted."


def constant(shape, kind, buffer=1, name="w", **fields):
    slots = {"quantization": 4, "sparsity": 6, "external": 10}
    return {
        0: np.int32(shape), 1: ("<b", kind), 2: ("<I", buffer), 3: name,
        **{slots[key]: value for key, value in fields.items()},
    }  # fmt: skip


def write(folder, *tensors, raw=(b"",), subgraphs=None, **more):
    """A file of some tensors, whose buffers 1, 2, ... are given; a buffer may be a place behind the tables."""
    buffers = [{}, *({0: each} if isinstance(each, bytes) else each for each in raw)]
    graphs = subgraphs or [{0: list(tensors)}]
    path = folder / "model.tflite"
    path.write_bytes(flatbuffer({0: ("<I", 3), 2: graphs, 3: "by hand", 4: buffers, **more.get("model", {})}, b"TFL3"))
    return path


def scales(*values, zeros=(), axis=0):
    return {2: np.float32(values), 3: np.int64(zeros), 6: ("<i", axis)}


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (FLOAT32, np.float32([1.5, -2]).tobytes(), [1.5, -2]),
        (FLOAT16, np.float16([1.5, -2]).tobytes(), [1.5, -2]),
        (BFLOAT16, b"\xc0\x3f\x00\xc0", [1.5, -2]),
        (INT8, b"\x01\xfe", [0.5, -1]),
        (UINT8, b"\x01\xfe", [0.5, 127]),
        (INT16, b"\x01\x00\xfe\xff", [0.5, -1]),
        (INT32, b"\x01\x00\x00\x00\xfe\xff\xff\xff", [0.5, -1]),
        (INT4, b"\xe1", [0.5, -1]),
        (INT2, b"\x09", [0.5, -1]),
    ],
)
def test_each_type_is_read(tmp_path, kind, raw, expected):
    tensors, left_out, _ = read(write(tmp_path, constant([2], kind, quantization=scales(0.5)), raw=[raw]))

    assert [name for name, _ in tensors] == ["w"]
    np.testing.assert_array_equal(tensors[0][1], expected)
    assert not left_out


def test_channels_have_scales_and_zeros_along_an_axis(tmp_path):
    quantization = scales(1, 2, 4, zeros=(0, 1, 2), axis=1)
    path = write(tmp_path, constant([2, 3], INT8, quantization=quantization), raw=[bytes(range(6))])

    np.testing.assert_array_equal(read(path)[0][0][1], [[0, 0, 0], [3, 6, 12]])


@pytest.mark.parametrize(("kind", "raw"), [(FLOAT16, np.float16([1, 2, 4, 8])), (FLOAT32, np.float32([1, 2, 4, 8]))])
def test_blocks_have_scales_in_another_tensor(tmp_path, kind, raw):
    blocks = {4: ("<B", 2), 5: {0: ("<i", 1), 1: ("<i", -1), 2: ("<i", 2)}}
    weights, codes = constant([2, 4], INT4, quantization=blocks), b"\x21\x43\x21\x43"
    path = write(tmp_path, weights, constant([2, 2], kind, 2, "s"), raw=[codes, raw.tobytes()])

    np.testing.assert_array_equal(read(path)[0][0][1], [[1, 2, 6, 8], [4, 8, 24, 32]])


def test_several_axes_have_scales_in_another_tensor(tmp_path):
    axes = {4: ("<B", 3), 5: {0: ("<i", 1), 1: ("<i", 2), 3: np.int32([0, 2])}}
    weights = constant([2, 1, 2], INT8, quantization=axes)
    raw = [bytes([1, 2, 3, 4]), np.float32([1, 2, 4, 8]).tobytes(), bytes([0, 0, 0, 1])]
    path = write(tmp_path, weights, constant([2, 2], FLOAT32, 2, "s"), constant([2, 2], INT8, 3, "z"), raw=raw)

    np.testing.assert_array_equal(read(path)[0][0][1], [[[1, 4]], [[12, 24]]])


def test_integers_without_scales_are_given_and_shapes_are_not(tmp_path):
    path = write(tmp_path, constant([4, 4], INT8), constant([2], INT32, 2), raw=[bytes(range(16)), bytes(8)])

    (name, values), *others = read(path)[0]
    assert (name, values.dtype, others) == ("w", np.int8, [])


def test_bytes_behind_the_tables_are_read(tmp_path):
    path = write(tmp_path, constant([2], FLOAT32), raw=[{1: ("<Q", 4_096), 2: ("<Q", 8)}])
    place = path.read_bytes()
    path.write_bytes(place + bytes(4_096 - len(place)) + np.float32([1, 2]).tobytes())

    np.testing.assert_array_equal(read(path)[0][0][1], [1, 2])


def external(name, start=4, length=8, **more):
    buffer = {0: ("<I", 9), 2: ("<Q", start), 3: ("<Q", length), **more.get("fields", {})}
    return {8: [{0: name}], 9: [buffer]}


def test_bytes_in_files_next_to_the_model_are_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.float32([0, 1, 2]).tobytes())
    tensor = constant([2], FLOAT32, 0, external=("<I", 9))

    tensors, _, found = read(write(tmp_path, tensor, model=external("weights.bin")))

    np.testing.assert_array_equal(tensors[0][1], [1, 2])
    assert found.companions == (tmp_path / "weights.bin",)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (external("../weights.bin"), "in a file outside its folder: ../weights.bin"),
        (external("/weights.bin"), "in a file outside its folder: /weights.bin"),
        (external("other.bin"), "in other.bin, which is missing: download the model again, all of its files"),
        (external("weights.bin", start=8), "cut off or damaged"),
        (external("weights.bin", start=1 << 63), "cut off or damaged"),
        (external("weights.bin", fields={4: "zip"}), "packed as zip"),
        (external("weights.bin", fields={1: ("<I", 3)}), "its buffer is missing"),
    ],
)
def test_bytes_elsewhere_are_not_read(tmp_path, model, reason):
    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        (folder / "weights.bin").write_bytes(bytes(12))
    tensor = constant([2], FLOAT32, 0, external=("<I", 9))

    _, left_out, found = read(write(tmp_path / "model", tensor, model=model))

    assert (found.tensors, left_out) == ([], {"w": reason})


def test_signatures_share_their_weights(tmp_path):
    graphs = [{0: [constant([2], FLOAT32, name=name), constant([2], FLOAT32, name="tied")]} for name in "ab"]

    assert [name for name, _ in read(write(tmp_path, subgraphs=graphs, raw=[bytes(8)]))[0]] == ["a", "tied"]


@pytest.mark.parametrize(
    "decoy", [scales(9), scales(1, zeros=(5,)), {4: ("<B", 2), 5: {0: ("<i", 7)}}], ids=["scale", "zero", "blocks"]
)
def test_a_subgraph_does_not_hide_how_another_scales_the_same_integers(tmp_path, decoy):
    graphs = [{0: [constant([2], INT8, name=n, quantization=q)]} for n, q in (("decoy", decoy), ("w", scales(1)))]
    tensors, _, _ = read(write(tmp_path, subgraphs=graphs, raw=[b"\x01\x02"]))

    np.testing.assert_array_equal(dict(tensors)["w"], [1, 2])


def sparsity(order, block_map, *levels):
    tables = [
        {0: ("<b", 0), 1: ("<i", level)} if isinstance(level, int) else
        {0: ("<b", 1), 2: ("<B", 3), 3: {0: np.uint8(level[0])}, 4: ("<B", 2), 5: {0: np.uint16(level[1])}}
        for level in levels
    ]  # fmt: skip
    return {0: np.int32(order), 1: np.int32(block_map), 2: tables}


@pytest.mark.parametrize(
    ("parameters", "values", "expected"),
    [
        (sparsity([0, 1], [], 2, ([0, 1, 3], [2, 0, 1])), [1, 2, 3], [[0, 0, 1], [2, 3, 0]]),
        (sparsity([1, 0], [], 3, ([0, 1, 2, 3], [1, 1, 0])), [2, 3, 1], [[0, 0, 1], [2, 3, 0]]),
        (sparsity([0, 1, 2], [1], 2, ([0, 1, 2], [1, 0]), 2), [1, 0, 2, 3], [[0, 0, 1, 0], [2, 3, 0, 0]]),
    ],
    ids=["by row", "by column", "blocks"],
)
def test_sparse_tensors_are_dense_again(tmp_path, parameters, values, expected):
    shape = np.shape(expected)
    path = write(tmp_path, constant(shape, FLOAT32, sparsity=parameters), raw=[np.float32(values).tobytes()])
    codes = constant(shape, INT8, sparsity=parameters, quantization=scales(2))

    np.testing.assert_array_equal(read(path)[0][0][1], expected)
    path = write(tmp_path, codes, raw=[np.int8(values).tobytes()])
    np.testing.assert_array_equal(read(path)[0][0][1], np.multiply(expected, 2))


@pytest.mark.parametrize(
    ("tensor", "raw", "reason"),
    [
        (constant([3], FLOAT32), bytes(8), "larger than its storage"),
        (constant([3, -1], FLOAT32), bytes(8), "an invalid shape"),
        (constant([1 << 30] * 3, FLOAT32), bytes(8), "larger than its storage"),
        (constant([20], INT4, quantization=scales(1)), bytes(8), "too few bytes for its shape"),
        (constant([8], INT8, quantization=scales(1, 2)), bytes(8), "scales of another shape"),
        (constant([8], INT8, quantization=scales(*range(8), axis=7)), bytes(8), "scales of another shape"),
        (constant([8], 14), bytes(8), "dtype variant"),
        (constant([8], FLOAT32, 7), bytes(8), "its buffer is missing"),
        (constant([8], FLOAT32, 0, external=("<I", 5)), bytes(8), "its buffer is missing"),
        (constant([4, 2], FLOAT32, sparsity=sparsity([0, 2], [], 4, 2)), bytes(32), "damaged sparse indices"),
    ],
)
def test_what_can_not_be_read_is_left_out_by_name(tmp_path, tensor, raw, reason):
    _, left_out, found = read(write(tmp_path, tensor, raw=[raw]))

    assert (found.tensors, left_out) == ([], {"w": reason})


def test_damaged_indices_are_an_error_when_they_are_read(tmp_path):
    parameters = sparsity([0, 1], [], 2, ([0, 1, 3], [2, 9, 1]))

    with pytest.raises(InvalidFileError, match="damaged sparse indices"):
        read(write(tmp_path, constant([2, 3], FLOAT32, sparsity=parameters), raw=[bytes(12)]))


def test_a_file_cut_off_is_an_error(tmp_path):
    whole = (FORMS / "vit/made/int4_blocks.tflite").read_bytes()
    path = tmp_path / "model.tflite"
    for size in (0, 4, 8, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidFileError, match="cut off"):
            FORMAT.load(path, {})


def test_files_are_recognized_by_their_identifier():
    assert FORMAT.matches((FORMS / "conv/made/int8.tflite").read_bytes()[:512], FORMS)
    assert not FORMAT.matches(b"\0\0\0\0ORTM", FORMS)
