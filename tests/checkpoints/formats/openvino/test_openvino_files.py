"""Weights of OpenVINO IRs, as OpenVINO and NNCF wrote them, and as attackers would."""

from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.computed_tensors import stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.openvino import openvino_graph
from hf_fingerprint.checkpoints.formats.openvino.openvino_files import FORMAT
from tests.helpers.forms import FORMS, best_matches, copy_weights


VIT, CONV = FORMS / "vit" / "made", FORMS / "conv" / "made"


def weights(path):
    left_out: dict[str, str] = {}
    found = FORMAT.load(path, left_out)
    assert not left_out
    return {name: stored_values(tensor) for name, tensor in found.tensors}


def constant(number, kind, shape, offset, size, name=None):
    data = f'<data element_type="{kind}" shape="{shape}" offset="{offset}" size="{size}"/>'
    return f'<layer id="{number}" name="{name or f"c{number}"}" type="Const">{data}</layer>'


def layer(number, kind, inside=""):
    return f'<layer id="{number}" name="{kind}_{number}" type="{kind}">{inside}</layer>'


def graph(layers, edges=()):
    listed = "".join(f'<edge from-layer="{a}" from-port="9" to-layer="{b}" to-port="{port}"/>' for a, b, port in edges)
    return f"<layers>{''.join(layers)}</layers><edges>{listed}</edges>"


def written(folder, content, data=b"", version=11):
    path = folder / "model.xml"
    path.write_text(f'<?xml version="1.0"?><net name="m" version="{version}">{content}</net>')
    path.with_suffix(".bin").write_bytes(data)
    return path


def load(path):
    left_out: dict[str, str] = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


@pytest.mark.parametrize(
    ("form", "stored", "error"),
    [
        ("int8_asym", {"uint8"}, 0.01),
        ("int4_sym", {"uint8", "int4"}, 0.15),
        ("int4_asym_groups", {"uint8", "uint4"}, 0.15),
        ("nf4", {"uint8", "nf4"}, 0.15),
    ],
)
def test_compressed_weights_are_dequantized_under_their_own_names(form, stored, error):
    path = VIT / f"openvino_{form}.xml"

    found, left_out = load(path)

    assert not left_out
    assert {tensor.stored for tensor in found.values() if hasattr(tensor, "stored")} == stored
    matrices = {name: values for name, values in copy_weights("vit").items() if values.ndim > 1 and "." in name}
    for name, values in matrices.items():
        read = stored_values(found[f"self.{name}"])
        assert read.shape == values.shape, "groups are undone"
        assert 0 < np.linalg.norm(read - values) < error * np.linalg.norm(values)
    assert FORMAT.load(path, {}).producer == "OpenVINO 2026.4.1"


def test_a_model_in_half_precision_has_every_weight_and_bias():
    found = weights(CONV / "openvino_fp16.xml")

    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    exact = copy_weights("conv")["fc.weight"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["self.fc.weight"], exact)
    assert min(best_matches(found, "conv").values()) > 0.9, "with folded normalization"
    assert sum(values.ndim == 4 and values.shape[0] == 1 for values in found.values()) == 10, "its biases"


def test_weights_quantized_after_training_are_those_of_the_float_model():
    quantized = [values for values in weights(CONV / "openvino_ptq_int8.xml").values() if values.shape[0] > 1]
    floats = [values for values in weights(CONV / "openvino_fp16.xml").values() if values.shape[0] > 1]

    assert len(quantized) == len(floats) == 16
    for values, expected in zip(quantized, floats, strict=True):
        assert np.abs(values - expected).max() < 0.02 * np.abs(expected).max()


def test_each_golden_file_is_recognized_with_its_weights():
    for path in (*VIT.glob("openvino_*.xml"), *CONV.glob("openvino_*.xml")):
        assert FORMAT.matches(path.read_bytes()[:512], path)
        assert FORMAT.companions(f"a/{path.name}", ["a/other.bin", f"a/{path.stem}.bin"]) == [f"a/{path.stem}.bin"]
        assert FORMAT.load(path, {}).companions == (path.with_suffix(".bin"),)
    for head in (b"<?xml version='1.0'?><html>", b"<network name='a'>", b"<!DOCTYPE net><net name='a'>", b""):
        assert not FORMAT.matches(head, Path("model.xml"))


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        ("u1", [0xE4], [1, 1, 1, 0, 0, 1, 0, 0]),
        ("u2", [0xE4], [0, 1, 2, 3]),
        ("u4", [0xE4, 0xF8], [4, 14, 8, 15]),
        ("i4", [0xE4, 0xF8], [4, -2, -8, -1]),
        ("nf4", [0xE4, 0xF8], [-0.28444138, 0.72295684, 0.0795803, 1]),
        ("f4e2m1", [0xE4, 0xF8], [2, -4, 0, -6]),
        ("f8e8m0", [127, 128, 126, 120], [1, 2, 0.5, 0.0078125]),
        ("f8e4m3", [0x38, 0xB8], [1, -1]),
    ],
)
def test_small_types_are_unpacked_as_openvino_does(tmp_path, kind, raw, expected):
    data = bytes(raw * 16)
    path = written(tmp_path, graph([constant(0, kind, 16 * len(expected), 0, len(data))]), data)

    found, left_out = load(path)

    assert not left_out
    np.testing.assert_allclose(stored_values(found["c0"]), np.tile(expected, 16), rtol=1e-6)


def quantized(scale_shape="4, 1", zero_edge=True, scale_type="f32"):
    """int8 codes of shape (4, 8), zero points, scales and the shape (4, 2, 4)."""
    layers = [
        constant(0, "i8", "4, 8", 0, 32, "w"),
        layer(1, "Convert"),
        constant(2, "i8", "4, 1", 32, 4),
        layer(3, "Convert"),
        layer(4, "Subtract"),
        constant(5, scale_type, scale_shape, 36, 16),
        layer(6, "Multiply"),
        constant(7, "i64", "3", 52, 24),
        layer(8, "Reshape"),
        layer(9, "MatMul"),
    ]
    edges = [(0, 1, 0), (1, 4, 0), (2, 3, 0), (4, 6, 0), (5, 6, 1), (6, 8, 0), (7, 8, 1), (8, 9, 1)]
    return graph(layers, [*edges, (3, 4, 1)] if zero_edge else edges)


CODES = np.arange(32, dtype=np.int8).reshape(4, 8)
ZEROS, SCALES = np.int8([1, 2, 3, 4]), np.float32([0.5, 1, 2, 4])
DATA = CODES.tobytes() + ZEROS.tobytes() + SCALES.tobytes() + np.int64([0, -1, 4]).tobytes()


def test_zero_points_and_scales_apply_in_the_order_of_the_graph(tmp_path):
    found, left_out = load(written(tmp_path, quantized(), DATA))

    assert (list(found), left_out) == (["w"], {})
    expected = (CODES - ZEROS[:, None].astype(np.float32)) * SCALES[:, None]
    np.testing.assert_array_equal(stored_values(found["w"]), expected.reshape(4, 2, 4))
    assert found["w"].stored == "int8"


def test_a_shape_that_is_no_shape_is_not_followed(tmp_path):
    content = quantized().replace('element_type="i64" shape="3"', 'element_type="f64" shape="3"')
    path = written(tmp_path, content, DATA[:52] + np.float64([4, np.nan, np.inf]).tobytes())

    assert load(path)[0]["w"].shape == (4, 8)


@pytest.mark.parametrize("change", [{"zero_edge": False}, {"scale_shape": "3, 1"}, {"scale_type": "string"}])
def test_codes_whose_scales_do_not_fit_are_given_as_codes(tmp_path, change):
    found, _ = load(written(tmp_path, quantized(**change), DATA))

    values = stored_values(found["w"])
    zeros = 0 if "zero_edge" in change else ZEROS[:, None].astype(np.float32)
    np.testing.assert_array_equal(values, CODES - zeros)


def test_a_gain_of_activations_is_a_weight_of_its_own(tmp_path):
    gain = constant(0, "f32", "1, 16", 0, 64, "gain")
    content = graph([gain, layer(1, "MVN"), layer(2, "Multiply")], [(1, 2, 0), (0, 2, 1)])

    found, _ = load(written(tmp_path, content, bytes(64)))

    assert [(name, tensor.shape) for name, tensor in found.items()] == [("gain", (1, 16))]


def test_bounds_of_rounding_are_no_weights(tmp_path):
    layers = [constant(0, "f32", 16, 0, 64, "rounded"), constant(1, "f32", 16, 0, 64), layer(2, "FakeQuantize")]

    found, _ = load(written(tmp_path, graph(layers, [(0, 2, 0), (1, 2, 1), (1, 2, 3)]), bytes(64)))

    assert list(found) == ["rounded"]


def test_weights_inside_loops_are_found(tmp_path):
    body = f"<body>{graph([constant(0, 'f32', '16', 64, 64, 'inner')])}</body>"
    content = graph([constant(0, "f32", "16", 0, 64, "outer"), layer(1, "TensorIterator", body)], [(0, 1, 0)])

    found, _ = load(written(tmp_path, content, bytes(64) + np.ones(16, np.float32).tobytes()))

    assert {name: float(stored_values(tensor)[0]) for name, tensor in found.items()} == {"outer": 0, "inner": 1}


@pytest.mark.parametrize(
    ("const", "reason"),
    [
        (constant(0, "f32", "99", 0, 396), "cut off"),
        (constant(0, "f32", "99", "9" * 30, 396), "an invalid shape or place"),
        (constant(0, "f32", "9, -1", 0, 16), "an invalid shape or place"),
        (constant(0, "f32", "99", 0, 16).replace("shape", "form"), "an invalid shape or place"),
        (constant(0, "f32", "99", 0, 16), "larger than its storage"),
        (constant(0, "i4", "99", 0, 16), "too few bytes"),
        (constant(0, "string", "99", 0, 16), "element type string"),
        (constant(0, "u1", "1, 1000000000000", 0, 16), "too few bytes"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, const, reason):
    found, left_out = load(written(tmp_path, graph([const]), bytes(64)))

    assert not found
    assert reason in left_out["c0"]


def test_rows_that_would_fill_the_memory_are_left_out(tmp_path):
    path = written(tmp_path, graph([constant(0, "u1", "1, 100000000", 0, 12_500_000)]), bytes(12_500_000))

    found, _ = load(path)

    assert "rows of more than" in found["c0"].unreadable_reason()


def test_a_circle_of_layers_ends(tmp_path):
    content = graph([constant(0, "i8", "16", 0, 16), layer(1, "Convert")], [(0, 1, 0), (1, 1, 0)])

    found, _ = load(written(tmp_path, content, bytes(16)))

    assert list(found) == ["c0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<!DOCTYPE net [<!ENTITY a "aaaa">]><net name="&a;" version="11"/>', "document type or entity"),
        ('<!DOCTYPE net SYSTEM "file:///etc/passwd"><net name="m" version="11"/>', "document type or entity"),
        ('<net name="&a;" version="11"/>', "undefined entity"),
        ('<net name="m" version="7"/>', "version 7 of the IR"),
        ('<net name="m"/>', "no OpenVINO IR"),
        ('<html version="11"/>', "no OpenVINO IR"),
        ('<net name="m" version="11">' + "<a>" * 99, "too many XML elements"),
        ('<net name="m" version="11"><layers>', "no element found"),
        ('<net name="m" version="11"><a b="' + "c" * 3_000_000 + '"/></net>', "too long"),
        ("", "no element found"),
    ],
)
def test_hostile_xml_is_refused(tmp_path, text, reason):
    path = written(tmp_path, "")
    path.write_text(text)

    with pytest.raises(InvalidFileError, match=reason):
        load(path)


@pytest.mark.parametrize("limit", ["MAX_ELEMENTS", "MAX_XML", "_MAX_ATTRIBUTES"])
def test_xml_is_bounded(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(openvino_graph, limit, 5)

    with pytest.raises(InvalidFileError, match=r"too many XML elements|MB of XML"):
        load(VIT / "openvino_nf4.xml")


def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_graph, "_PIECE", 1 << 12)

    assert len(weights(VIT / "openvino_nf4.xml")) == 31


def test_weights_stay_inside_the_folder(tmp_path):
    (tmp_path / "model").mkdir()
    path = written(tmp_path / "model", quantized(), DATA)
    outside = path.with_suffix(".bin").rename(tmp_path / "outside.bin")

    with pytest.raises(InvalidFileError, match=r"model\.bin, which is missing"):
        load(path)
    path.with_suffix(".bin").symlink_to(outside)
    with pytest.raises(InvalidFileError, match="link to outside"):
        load(path)
