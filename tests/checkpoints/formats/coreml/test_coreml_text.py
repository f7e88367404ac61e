"""Core ML programs as text, as compilers of several years print them."""

import re
import struct

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml import coreml_text
from hf_fingerprint.checkpoints.formats.coreml.coreml_files import FORMAT


WEIGHTS = np.arange(48, dtype=np.float16).reshape(16, 3)
BLOB = 'BLOBFILE(path = string("@model_path/weights/weight.bin"), offset = uint64(64))'
OLD_BLOB = 'BLOBFILE(path = tensor<string, []>("@model_path/weights/weight.bin"), offset = tensor<uint64, []>(64))'
HEAD = 'program(1.0)\n[buildInfo = dict<string, string>({{"coremlc-version", "1436.100.10"}})]\n{\n'


def blob_file(raw, kind=1):
    head = struct.pack("<II", 1, 2).ljust(64, b"\0")
    metadata = struct.pack("<IIQQ", 0xDEADBEEF, kind, len(raw), 128).ljust(64, b"\0")
    return head + metadata + raw


def read(body, folder, head=HEAD, raw=None, kind=1, left_out=None):
    """The values of the weights of a program with a weight file."""
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "weights/weight.bin").write_bytes(blob_file(WEIGHTS.tobytes() if raw is None else raw, kind))
    path = folder / "model.mil"
    path.write_text(f"{head}{body}\n}}\n")
    assert FORMAT.matches(path.read_bytes()[:512], path)
    found = FORMAT.load(path, {} if left_out is None else left_out)
    return {name: stored_values(tensor) for name, tensor in found.tensors}, found.producer


def function(body, name="main", inputs="tensor<fp16, [1, 3]> x"):
    return f"    func {name}<ios16>({inputs}) {{\n{body}\n    }} -> (y);"


def weight(name, blob=BLOB, kind="tensor<fp16, [16, 3]>"):
    return f'{kind} {name} = const()[name = string("{name}"), val = {kind}({blob})];'


@pytest.mark.parametrize("blob", [BLOB, OLD_BLOB])
def test_constants_lie_in_the_weight_file(blob, tmp_path):
    tensors, producer = read(function(weight("w", blob)), tmp_path)

    np.testing.assert_array_equal(tensors["w"], WEIGHTS)
    assert producer == "coremlc 1436.100.10"


def test_the_converter_is_named_where_it_is_known(tmp_path):
    head = (
        'program(1.3)\n[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}, '
        '{"coremlc-version", "3505.4.1"}, {"coremltools-version", "9.0"}})]\n{\n'
    )

    assert read(function(weight("w")), tmp_path, head)[1] == "coremltools 9.0"


def test_constants_in_the_text(tmp_path):
    body = """
        tensor<fp16, [2, 2]> a = const()[name = tensor<string, []>("a"), val = tensor<fp16, [2, 2]>([[0x1.8p-1, -0x1p+1], [0x0p0, inf]])];
        tensor<fp32, [3]> b = const()[name = string("b"), val = tensor<fp32, [3]>([1.5, -2e1, 0x1p0])];
        tensor<int32, [2]> strides = const()[name = string("strides"), val = tensor<int32, [2]>([1, 1])];
        tensor<bool, [3]> flags = const()[name = string("flags"), val = tensor<bool, [3]>([true, false, true])];
        string pad = const()[name = string("pad"), val = string("say \\"} -> (;\\"")];
        fp16 epsilon = const()[name = string("epsilon"), val = fp16(0x1p-17)];
        int32 groups = const()[name = string("groups"), val = int32(1)];
    """  # noqa: E501

    tensors, _ = read(function(body), tmp_path)

    assert list(tensors) == ["a", "b"]
    np.testing.assert_array_equal(tensors["a"], [[0.75, -2], [0, np.inf]])
    np.testing.assert_array_equal(tensors["b"], np.float32([1.5, -20, 1]))


def test_operations_around_constants(tmp_path):
    inputs = "tensor<fp16, [1, ?, 3]> x, state<tensor<fp16, [1, 4]>> cache"
    flexible = (
        '[FlexibleShapeInformation = tuple<tuple<string, dict<string, tensor<int32, [?]>>>, '
        'tuple<string, dict<string, list<tensor<int32, [2]>, ?>>>>((("DefaultShapes", {{"x", [1, 9, 3]}}), '
        '("RangeDims", {{"x", [[1, 1], [1, -1], [3, 3]]}})))]'
    )  # fmt: skip
    body = f"""
            {weight("w")}
            tensor<fp16, [1, 16]> y0 = linear(bias = zeros, weight = w, x = x)[name = string("y0")];
            tensor<fp16, [1, 8]> a, tensor<fp16, [1, 8]> b = split(axis = axis, num_splits = two, x = y0)[name = string("ab")];
            (tensor<fp16, [1, 8]> c, tensor<fp16, [1, 8]> d) = split(axis = axis, num_splits = two, x = y0);
            tensor<fp16, [1, ?]> y1 = concat(axis = axis, interleave = no, values = (a, b, c, d))[name = string("y1")];
            tensor<fp16, [1, ?]> y = cond(pred = p)[name = string("y")]
            {{
                {weight("inside")}
            }} -> (inside), {{
                {weight("outside")}
            }} -> (outside);
    """  # noqa: E501
    text = f"    func main<ios18>({inputs}) {flexible} {{\n{body}\n    }} -> (y);\n" + function(weight("v"), "other")

    tensors, _ = read(text, tmp_path)

    assert list(tensors) == ["w", "inside", "outside", "v"]


def test_weights_written_where_they_are_used(tmp_path):
    body = f'tensor<fp16, [1, 16]> y = linear(weight = tensor<fp16, [16, 3]>({BLOB}), x = x)[name = string("y")];'

    tensors, _ = read(function(body), tmp_path)

    np.testing.assert_array_equal(tensors["y.weight"], WEIGHTS)


@pytest.mark.parametrize("inline", [False, True])
def test_compressed_constants(inline, tmp_path):
    data = "tensor<int8, [16, 3]>" + f"({BLOB})"
    scale = "tensor<fp16, [16, 1]>([" + ", ".join(["[0x1p-1]"] * 16) + "])"
    body = f"""
        tensor<int8, [16, 3]> q = const()[name = string("q"), val = {data}];
        tensor<fp16, [16, 1]> s = const()[name = string("s"), val = {scale}];
        tensor<fp16, [16, 3]> w = constexpr_blockwise_shift_scale(data = q, scale = s)[name = string("w")];"""
    if inline:
        body = f"tensor<fp16, [16, 3]> w = constexpr_blockwise_shift_scale(data = {data}, scale = {scale})[];"
    values = np.arange(-24, 24, dtype=np.int8)

    tensors, _ = read(function(body), tmp_path, raw=values.tobytes(), kind=4)

    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"], values.reshape(16, 3) * 0.5)


def test_settings_of_compressed_constants_may_be_attributes(tmp_path):
    body = (
        "tensor<fp16, [16, 3]> w = constexpr_affine_dequantize()[axis = int32(0), name = string(\"w\"), "
        f"quantized_data = tensor<uint8, [16, 3]>({BLOB}), scale = fp16(0x1p-2), zero_point = uint8(4)];"
    )  # fmt: skip

    tensors, _ = read(function(body), tmp_path, raw=bytes(range(48)), kind=3)

    np.testing.assert_array_equal(tensors["w"], (np.arange(48).reshape(16, 3) - 4) / 4)


def test_integers_of_unknown_use_are_given_as_they_are(tmp_path):
    body = weight("q", kind="tensor<int8, [16, 3]>") + "tensor<fp16, [16, 3]> y = mystery(x = q)[];"

    tensors, _ = read(function(body), tmp_path, raw=bytes(range(48)), kind=4)

    np.testing.assert_array_equal(tensors["q"], np.arange(48).reshape(16, 3))


@pytest.mark.parametrize(
    ("blob", "kind", "reason"),
    [
        (BLOB, "tensor<fp32, [16, 3]>", "another one in the weight file"),
        (BLOB, "tensor<fp16, [16, 4]>", "larger than its storage"),
        (BLOB, "tensor<float4, [16, 4]>", "dtype float4"),
        (BLOB.replace("uint64(64)", "uint64(65)"), "tensor<fp16, [16, 3]>", "no weights at its place"),
        (BLOB.replace("uint64(64)", "uint64(18446744073709551615)"), "tensor<fp16, [16, 3]>", "cut off"),
        (BLOB.replace("uint64(64)", "uint64()"), "tensor<fp16, [16, 3]>", "cut off"),
        ("[1, 2, 3]", "tensor<fp32, [16, 3]>", "larger than its storage"),
        ("[0xq]", "tensor<fp32, [16]>", "invalid number|larger"),
        (f"[{'9' * 5000}]", "tensor<int64, [16]>", "invalid number"),
        ("[1]", "tensor<fp32, [4611686018427387904, 4611686018427387904]>", "larger|invalid|dtype"),
    ],
)
def test_weights_that_do_not_fit_are_left_out(blob, kind, reason, tmp_path):
    left_out = {}

    tensors, _ = read(function(weight("w", blob, kind) + weight("v")), tmp_path, left_out=left_out)

    assert list(tensors) == ["v"]
    assert list(left_out) == ["w"]
    assert re.search(reason, left_out["w"])


@pytest.mark.parametrize(
    "body",
    [
        'func main<ios16>(tensor<fp16, [1]> x) { string a = const()[name = "',
        "func main<ios16>(((((",
        "func main<ios16>() { a = b(c = ((((((d)",
        "func main<ios16>() { tensor<tensor<tensor<",
        "func main<ios16>() { a = b(c)[",
        "func main<ios16>() { {{{{{{ } } } } } }",
        "func main<ios16>() { a = 1; }",
        "func",
    ],
)
def test_what_is_no_program_is_refused(body, tmp_path):
    path = tmp_path / "model.mil"
    path.write_text(HEAD + body)

    with pytest.raises(InvalidFileError):
        FORMAT.load(path, {})


@pytest.mark.parametrize(("limit", "value"), [("MAX_TOKENS", 50), ("MAX_TEXT", 100), ("MAX_NUMBERS", 5)])
def test_programs_are_bounded(limit, value, tmp_path, monkeypatch):
    monkeypatch.setattr(coreml_text, limit, value)
    monkeypatch.setattr("hf_fingerprint.checkpoints.formats.coreml.coreml_files.MAX_TEXT", coreml_text.MAX_TEXT)

    with pytest.raises(InvalidFileError, match="more than"):
        read(function(weight("w") * 3 + weight("v", "[1, 2, 3, 4]", "tensor<fp32, [2, 2]>") * 2), tmp_path)
