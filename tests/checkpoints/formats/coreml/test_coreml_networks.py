"""Neural networks of Core ML: the weights of each kind of layer, in each form."""

import json
import struct

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.coreml import coreml_networks
from hf_fingerprint.checkpoints.formats.coreml.coreml_files import FORMAT
from tests.helpers.wire import field


DRAW = np.random.default_rng(0)


def floats(*values):
    return np.asarray(values, np.float32).tobytes()


def weights(shape, form="float32"):
    """Weights of a shape as a `WeightParams`, and their values."""
    count = int(np.prod(shape))
    values = DRAW.normal(size=count).astype(np.float32)
    if form == "float32":
        return field(1, values.tobytes()), values.reshape(shape)
    if form == "float16":
        return field(2, values.astype(np.float16).tobytes()), values.astype(np.float16).reshape(shape)
    kind, bits, outputs = form.split("_")[0], int(form.split("_")[1]), int(form.split("_")[2])
    codes = DRAW.integers(0, 1 << bits, count)
    wide = (codes.reshape(-1, 1) >> np.arange(bits)[::-1]) & 1
    raw = np.packbits(wide.astype(np.uint8)).tobytes()
    if kind == "table":
        table = DRAW.normal(size=1 << bits).astype(np.float32)
        scheme = field(1, bits) + field(102, field(1, table.tobytes()))
        return field(30, raw) + field(40, scheme), table[codes].reshape(shape)
    scale, bias = DRAW.normal(size=(2, outputs)).astype(np.float32)
    scheme = field(1, bits) + field(101, field(1, scale.tobytes()) + field(2, bias.tobytes()))
    wide_scale, wide_bias = (each.reshape(-1, *[1] * (len(shape) - 1)) for each in (scale, bias))
    return field(30, raw) + field(40, scheme), codes.reshape(shape) * wide_scale + wide_bias


def model(*layers, kind=500):
    return field(1, 4) + field(2, b"") + field(kind, b"".join(field(1, layer) for layer in layers))


def read(content, folder, left_out=None):
    path = folder / "net.mlmodel"
    path.write_bytes(content)
    found = FORMAT.load(path, {} if left_out is None else left_out)
    return {name: stored_values(tensor) for name, tensor in found.tensors}


FORMS = ["float32", "float16", "linear_8_1", "linear_8_6", "linear_5_6", "table_8_1", "table_4_1", "table_1_1"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [303, 403, 500])
def test_convolutions_in_each_form(form, kind, tmp_path):
    raw, values = weights((6, 4, 3, 5), form)
    layer = field(1, 6) + field(2, 4) + field(10, 2) + field(20, 3) + field(20, 5) + field(90, raw)

    tensors = read(model(field(1, "conv") + field(100, layer), kind=kind), tmp_path)

    assert list(tensors) == ["conv.weights"]
    np.testing.assert_allclose(tensors["conv.weights"], values, rtol=1e-5, atol=1e-6)


def params(number, shape, *sizes):
    raw, values = weights(shape)
    return b"".join(sizes) + field(number, raw), values


def sizes(number, *values):
    return b"".join(field(number, value) for value in values)


LAYERS = {  # the number of the layer, its sizes, the weights' field and name, the shape
    "convolution of 3 by 3": (100, sizes(1, 4) + sizes(2, 2), 90, "weights", (4, 2, 3, 3)),
    "deconvolution": (100, sizes(1, 4) + sizes(2, 6) + sizes(10, 2) + sizes(20, 2, 2) + sizes(60, 1), 90, "weights",
                      (6, 2, 2, 2)),
    "convolution in 3 dimensions": (1471, sizes(1, 4) + sizes(2, 6) + sizes(10, 2) + sizes(20, 1) + sizes(21, 2)
                                    + sizes(22, 3), 60, "weights", (4, 3, 1, 2, 3)),
    "matrix": (140, sizes(1, 3) + sizes(2, 5), 20, "weights", (5, 3)),
    "bias": (140, sizes(1, 3) + sizes(2, 5), 21, "bias", (5,)),
    "embedding": (150, sizes(1, 7) + sizes(2, 5), 20, "weights", (5, 7)),
    "embedding of any shape": (1040, sizes(1, 7) + sizes(2, 5), 20, "weights", (5, 7)),
    "batched matrix": (1045, sizes(5, 3) + sizes(6, 5), 8, "weights", (5, 3)),
    "batch normalization": (160, sizes(1, 5), 18, "variance", (5,)),
    "layer normalization": (1350, sizes(1, 5), 3, "gamma", (5,)),
    "scale": (245, sizes(1, 2, 1, 3) + sizes(4, 2), 2, "scale", (2, 1, 3)),
    "shift": (250, sizes(1, 5), 2, "bias", (5,)),
    "constant": (290, sizes(1, 2, 3, 4), 2, "data", (2, 3, 4)),
    "constant of any shape": (1070, sizes(1, 1, 17, 4), 2, "data", (1, 17, 4)),
    "recurrent": (400, sizes(1, 3) + sizes(2, 5), 31, "recursionMatrix", (5, 5)),
    "gru": (410, sizes(1, 3) + sizes(2, 5), 31, "resetGateWeightMatrix", (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_each_kind_of_layer(case, tmp_path):
    number, head, at, name, shape = LAYERS[case]
    raw, values = weights(shape)

    tensors = read(model(field(1, "x") + field(number, head + field(at, raw))), tmp_path)

    assert list(tensors) == [f"x.{name}"]
    np.testing.assert_array_equal(tensors[f"x.{name}"], values)


def test_gates_of_lstms(tmp_path):
    (first, a), (second, b) = weights((5, 3)), weights((5, 5))
    gates = field(2, first) + field(22, second)
    head = sizes(1, 3) + sizes(2, 5)

    tensors = read(
        model(
            field(1, "one") + field(420, head + field(20, gates)),
            field(1, "two") + field(430, head + field(20, gates) + field(20, gates)),
        ),
        tmp_path,
    )

    assert len(tensors) == 6
    np.testing.assert_array_equal(tensors["one.forgetGateWeightMatrix"], a)
    np.testing.assert_array_equal(tensors["two.1.blockInputRecursionMatrix"], b)


def test_integers_for_dynamic_quantization_are_signed(tmp_path):
    codes = DRAW.integers(-128, 128, (5, 3)).astype(np.int8)
    raw = field(31, codes.tobytes()) + field(40, field(1, 8) + field(101, field(1, floats(0.5))))

    tensors = read(model(field(1, "x") + field(140, sizes(1, 3) + sizes(2, 5) + field(20, raw))), tmp_path)

    np.testing.assert_array_equal(tensors["x.weights"], codes * 0.5)


def test_networks_in_branches_and_loops_are_read(tmp_path):
    raw, values = weights((2, 3))
    inner = field(1, field(1, "inner") + field(140, sizes(1, 3) + sizes(2, 2) + field(20, raw)))
    other = inner.replace(b"inner", b"other")

    tensors = read(
        model(field(1, "b") + field(605, field(1, inner)), field(1, "l") + field(615, field(4, other))), tmp_path
    )

    assert list(tensors) == ["inner.weights", "other.weights"]
    np.testing.assert_array_equal(tensors["other.weights"], values)


def test_networks_are_not_followed_without_end(tmp_path):
    network = b""
    for _ in range(coreml_networks.MAX_DEPTH + 1):
        network = field(1, field(605, field(1, network)))

    with pytest.raises(InvalidFileError, match="nested too deep"):
        read(field(1, 4) + field(500, network), tmp_path)


@pytest.mark.parametrize(
    ("head", "raw", "reason"),
    [
        (sizes(1, 3) + sizes(2, 5), field(1, floats(*range(14))), "larger than its storage"),
        (sizes(1, 3) + sizes(2, 5), field(1, floats(*range(16))), "another shape"),
        (sizes(1, -3) + sizes(2, -5), field(1, floats(*range(15))), "invalid shape"),
        (sizes(1, 3) + sizes(2, 5), field(30, bytes(15)), "unknown form"),
        (sizes(1, 3) + sizes(2, 5), field(30, bytes(15)) + field(40, field(1, 9)), "unknown form"),
        (sizes(1, 3) + sizes(2, 5), field(30, bytes(15)) + field(40, field(1, 8)), "unknown form"),
        (sizes(1, 3) + sizes(2, 5), field(30, bytes(9)) + field(40, field(1, 8) + field(102, b"")), "too few bytes"),
        (sizes(1, 3) + sizes(2, 5), field(30, bytes(15)) + field(40, field(1, 8) + field(101, field(1, floats(1, 2)))),
         "scales of another shape"),
        (sizes(1, 1 << 40) + sizes(2, 5), field(30, bytes(15)) + field(40, field(1, 8) + field(102, b"")),
         "too large"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_left_out(head, raw, reason, tmp_path):
    good, _ = weights((5, 3))
    matrix = field(1, "good") + field(140, sizes(1, 3) + sizes(2, 5) + field(20, good))
    left_out = {}

    tensors = read(model(matrix, field(1, "bad") + field(140, head + field(20, raw))), tmp_path, left_out)

    assert list(tensors) == ["good.weights"]
    assert reason in left_out["bad.weights"]


def test_models_that_are_no_networks_have_no_weights(tmp_path):
    assert read(field(1, 4) + field(400, b""), tmp_path) == {}


def espresso(folder, layers, blobs):
    """The values of the weights of a compiled network."""
    (folder / "model.espresso.net").write_text(json.dumps({"format_version": 200, "layers": layers}))
    table = b"".join(struct.pack("<QQ", number, len(raw)) for number, raw in blobs.items())
    (folder / "model.espresso.weights").write_bytes(struct.pack("<Q", len(blobs)) + table + b"".join(blobs.values()))
    left_out = {}
    found = FORMAT.load(folder / "model.espresso.net", left_out)
    return {name: stored_values(tensor) for name, tensor in found.tensors}, left_out


def test_compiled_networks(tmp_path):
    conv, dense = DRAW.normal(size=(4, 3, 2, 5)).astype(np.float16), DRAW.normal(size=(6, 4)).astype(np.float32)
    bias, norm = DRAW.normal(size=4).astype(np.float32), DRAW.normal(size=(4, 4)).astype(np.float32)
    codes, scale = DRAW.integers(0, 256, (4, 2, 1, 1)).astype(np.uint8), DRAW.normal(size=4).astype(np.float32)
    constant = DRAW.normal(size=(1, 2, 3, 1)).astype(np.float32)
    layers = [
        {"type": "convolution", "name": "conv", "C": 4, "K": 6, "Nx": 5, "Ny": 2, "n_groups": 2,
         "blob_weights_f16": 3, "blob_biases": 5},
        {"type": "batchnorm", "name": "norm", "C": 4, "blob_batchnorm_params": 7},
        {"type": "convolution", "name": "codes", "C": 4, "K": 2, "Nx": 1, "Ny": 1, "n_groups": 1,
         "weights": {"W_U8": 9, "per_ch_qscale": 11, "per_ch_qbias": 5}},
        {"type": "inner_product", "name": "dense", "nB": 4, "nC": 6, "blob_weights": 13},
        {"type": "load_constant", "name": "value", "n": 1, "k": 2, "h": 3, "w": 1, "constant_blob": 15},
        {"type": "instancenorm_1d", "name": "other", "weights": {"wBeta": 5}},
    ]  # fmt: skip
    blobs = {3: conv, 5: bias, 7: norm, 9: codes, 11: scale, 13: dense, 15: constant}

    tensors, left_out = espresso(tmp_path, layers, {number: each.tobytes() for number, each in blobs.items()})

    assert not left_out
    wanted = {"conv.weights": conv, "conv.biases": bias, "dense.weights": dense, "value.constant_blob": constant}
    wanted |= {f"norm.{name}": norm[:, at] for at, name in enumerate(("gamma", "beta", "mean", "variance"))}
    wanted |= {"codes.W_U8": codes * scale.reshape(4, 1, 1, 1) + bias.reshape(4, 1, 1, 1), "other.wBeta": bias}
    assert tensors.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(tensors[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "change",
    [{"C": 5}, {"C": -4}, {"C": "4"}, {"C": 1 << 70}, {"K": None}, {"blob_weights": 4}, {"n_groups": 0, "Nx": 2}],
)
def test_compiled_weights_that_do_not_fit_are_left_out(change, tmp_path):
    layer = {"type": "convolution", "name": "conv", "C": 4, "K": 1, "Nx": 1, "Ny": 1, "blob_weights": 1} | change

    tensors, left_out = espresso(tmp_path, [layer, 3, {"name": 4}], {1: floats(*range(4)), 4: b"abc"})

    assert not tensors
    assert list(left_out) == ["conv.weights"]


@pytest.mark.parametrize(
    ("net", "blobs"),
    [
        (b"[" * 100_000, struct.pack("<Q", 0)),
        (b"[]", struct.pack("<Q", 0)),
        (b'{"layers": {}}', struct.pack("<Q", 0)),
        (b'{"layers": []}', b""),
        (b'{"layers": []}', struct.pack("<Q", 1 << 62)),
        (b'{"layers": []}', struct.pack("<QQQ", 1, 0, 5)),
        (b'{"layers": []}', None),
        (b'{"layers": [\xff]}', struct.pack("<Q", 0)),
    ],
)
def test_damaged_compiled_networks_are_refused(net, blobs, tmp_path):
    (tmp_path / "model.espresso.net").write_bytes(net)
    if blobs is not None:
        (tmp_path / "model.espresso.weights").write_bytes(blobs)

    with pytest.raises(InvalidFileError):
        FORMAT.load(tmp_path / "model.espresso.net", {})
