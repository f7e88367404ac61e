"""Weights of frozen TensorFlow graphs, as TensorFlow wrote them, and as attackers would."""

from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats import protobuf
from hf_fingerprint.checkpoints.formats.computed_tensors import stored_rows, stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.tensorflow_graphs import FORMAT
from tests.helpers.forms import FORMS, best_matches, copy_weights
from tests.helpers.wire import field


GOLDEN = FORMS / "conv" / "made" / "frozen_graph.pb"
FLOAT, DOUBLE, INT8, TEXT, INT64, HALF = 1, 2, 6, 7, 9, 19


def tensor(kind, shape, *values):
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    return field(1, kind) + field(2, sizes) + b"".join(values)


def node(name, operation, stored=b""):
    value = field(5, field(1, "value") + field(2, field(8, stored)))
    return field(1, name) + field(2, operation) + (value if stored else b"")


def written(folder, *nodes, after=b""):
    path = folder / "graph.pb"
    path.write_bytes(b"".join(field(1, each) for each in nodes) + after)
    return path


def load(path):
    left_out: dict[str, str] = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


def test_a_frozen_graph_has_the_weights_of_the_copy():
    found, left_out = load(GOLDEN)

    assert not left_out
    assert FORMAT.load(GOLDEN, {}).producer.startswith("TensorFlow (graph version ")
    read = {name: stored_values(values) for name, values in found.items()}
    (head,) = [values for values in read.values() if values.shape == (32, 5)]
    np.testing.assert_allclose(head.T, copy_weights("conv")["fc.weight"], rtol=1e-5, atol=1e-7)
    assert next(values.shape for values in read.values() if values.ndim == 4) == (3, 3, 3, 6)
    assert min(best_matches(read, "conv").values()) > 0.9, "with folded normalization"


def test_a_frozen_graph_is_distinguished_from_other_messages():
    assert FORMAT.matches(GOLDEN.read_bytes()[:512], GOLDEN)
    long = field(1, node("a/" * 90 + "kernel", "VariableV2"))
    assert FORMAT.matches(long[:512], Path("graph.pb"))
    for head in (
        field(1, 8) + field(2, "pytorch") + field(7, b"graph"),  # ONNX
        field(1, 1) + field(2, field(1, b"")),  # SavedModel
        field(1, "ResNet") + field(100, field(1, "conv") + field(2, "Convolution")),  # Caffe
        field(1, field(1, "input") + field(3, "name")),
        b"\n",
        b"",
    ):
        assert not FORMAT.matches(head, Path("graph.pb"))


def test_values_are_read_wherever_they_are_stored(tmp_path):
    values = np.arange(20, dtype=np.float32)
    halves = b"".join(field(13, int(code)) for code in values.astype(np.float16).view(np.uint16))
    path = written(
        tmp_path,
        node("x", "Placeholder"),
        node("bytes", "Const", tensor(FLOAT, (4, 5), field(4, values.tobytes()))),
        node("floats", "Const", tensor(FLOAT, (4, 5), field(5, values.tobytes()))),
        node("doubles", "Const", tensor(DOUBLE, (4, 5), field(6, values.astype(np.float64).tobytes()))),
        node("halves", "Const", tensor(HALF, (4, 5), halves)),
        node("codes", "Const", tensor(INT8, (4, 5), field(4, values.astype(np.int8).tobytes()))),
        node("setting", "Const", tensor(FLOAT, (5,), field(4, bytes(20)))),
        after=field(2, field(1, field(3, node("inner", "Const", tensor(FLOAT, (20,), field(4, values.tobytes())))))),
    )

    found, left_out = load(path)

    assert not left_out
    assert list(found) == ["bytes", "floats", "doubles", "halves", "codes", "inner"]
    for name, each in found.items():
        np.testing.assert_array_equal(stored_values(each).reshape(-1), values, err_msg=name)
    assert found["codes"].dtype == "int8"


def test_the_last_value_is_repeated_as_tensorflow_shortens_it(tmp_path):
    path = written(tmp_path, node("b", "Const", tensor(FLOAT, (4, 5), field(5, np.float32([1, 2, 3]).tobytes()))))

    found, _ = load(path)

    expected = np.float32([[1, 2, 3, 3, 3]] + [[3] * 5] * 3)
    np.testing.assert_array_equal(stored_values(found["b"]), expected)
    np.testing.assert_array_equal(stored_rows(found["b"])(1, 3), expected[1:3])


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (tensor(FLOAT, (99,), field(4, bytes(16))), "too few bytes"),
        (tensor(FLOAT, (99,)), "too few bytes"),
        (tensor(FLOAT, (-1, 99), field(4, bytes(16))), "an invalid shape"),
        (tensor(FLOAT, (99,) * 65, field(4, bytes(16))), "an invalid shape"),
        (tensor(TEXT, (99,), field(8, b"text")), "dtype text"),
        (tensor(INT64, (99,), field(10, 1)), "not stored as bytes"),
        (tensor(HALF, (99,), field(13, 1)), "repeated values"),
        (tensor(99, (99,), field(4, bytes(99))), "dtype 99"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, stored, reason):
    found, left_out = load(written(tmp_path, node("\x1b[2Jw", "Const", stored)))

    assert not found
    assert reason in left_out["\x1b[2Jw"]


def test_one_value_repeated_a_trillion_times_is_not_read(tmp_path):
    found, _ = load(written(tmp_path, node("b", "Const", tensor(FLOAT, (1, 1 << 40), field(5, bytes(4))))))

    assert "rows of more than" in found["b"].unreadable_reason()


def test_a_damaged_graph_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "graph.pb"
    path.write_bytes(GOLDEN.read_bytes()[:100_000])
    with pytest.raises(InvalidFileError, match="cut off"):
        load(path)
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 100)
    with pytest.raises(InvalidFileError, match="more than 100 fields"):
        load(GOLDEN)
