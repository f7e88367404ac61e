"""Flax's files, and the walk over msgpack's wire format."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.flax_files import FORMAT
from hf_fingerprint.checkpoints.formats.msgpack import Extension, Pairs, Unpacker
from tests.helpers.forms import FORMS, best_matches, copy_weights, kind_of, made, read_tensor


def packed(value):
    """A value in msgpack, in the longest form of each."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, dict):
        pairs = b"".join(packed(key) + packed(inner) for key, inner in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    if isinstance(value, np.ndarray):
        inner = packed([list(value.shape), str(value.dtype), value.tobytes()])
        return b"\xc9" + struct.pack(">Ib", len(inner), 1) + inner
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))


def plain(value):
    if isinstance(value, Pairs):
        return {plain(key): plain(inner) for key, inner in value}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value.tobytes() if isinstance(value, np.ndarray) else value


def loaded(path):
    left_out = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


@pytest.mark.parametrize("path", made("*.msgpack"), ids=lambda path: path.name)
def test_arrays_are_found_with_their_values(path):
    tensors, left_out = loaded(path)

    assert left_out == {} and FORMAT.matches(path.read_bytes()[:512], path.with_suffix(""))
    found = {name: read_tensor(tensor) for name, tensor in tensors.items()}
    assert min(best_matches(found, kind_of(path)).values()) > 1 - 1e-9
    expected = copy_weights("conv")["layer4.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found["params/layer4/0/conv1/kernel"], expected)


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
)


@given(
    st.recursive(
        _scalars | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_values_are_read_as_they_were_written(value):
    raw = np.frombuffer(packed(value), np.uint8)
    unpacker = Unpacker(raw)

    assert plain(unpacker.read()) == value
    assert unpacker.ended
    with pytest.raises(InvalidFileError):
        Unpacker(raw[:-1]).read()


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("05", 5), ("ff", -1), ("e0", -32), ("cc80", 128), ("cd0100", 256), ("ce00010000", 1 << 16), ("d080", -128),
        ("cf8000000000000000", 1 << 63), ("d18000", -32768), ("d280000000", -(1 << 31)), ("ca3f800000", 1.0),
        ("a161", b"a"), ("d90161", b"a"), ("da000161", b"a"), ("9101", [1]), ("dc000101", [1]),
        ("8101c0", [(1, None)]), ("de0001c2c3", [(False, True)]),
    ],
)  # fmt: skip
def test_short_forms_are_read(raw, value):
    unpacker = Unpacker(np.frombuffer(bytes.fromhex(raw), np.uint8))

    assert unpacker.read() == value and unpacker.ended


@pytest.mark.parametrize("raw", ["d401ff", "c70101ff", "c8000101ff", "c90000000101ff"])
def test_extensions_are_views_of_the_file(raw):
    data = np.frombuffer(bytes.fromhex(raw), np.uint8)

    found = Unpacker(data).read()

    assert isinstance(found, Extension) and found.kind == 1
    assert np.shares_memory(found.content, data) and found.content.tolist() == [255]


def test_an_array_in_parts_is_put_together(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    parts = {"0": values.reshape(-1)[:7], "1": values.reshape(-1)[7:9], "2": values.reshape(-1)[9:]}
    shape = {"0": 4, "1": 3, "2": 2}
    tree = {"a": [{"__msgpack_chunked_array__": True, "shape": shape, "chunks": parts}]}
    (tmp_path / "a.msgpack").write_bytes(packed(tree))

    tensor = loaded(tmp_path / "a.msgpack")[0]["a/0"]

    assert tensor.shape == (4, 3, 2)
    for start in range(0, 96, 5):
        for stop in (start + 1, start + 30, 96):
            assert tensor.read(start, min(stop, 96)).tobytes() == values.tobytes()[start:stop]


def test_what_can_not_be_read_is_named_with_the_reason(tmp_path):
    def array(shape, dtype, raw):
        inner = packed([shape, dtype, raw])
        return b"\xc9" + struct.pack(">Ib", len(inner), 1) + inner

    entries = {
        "short": array([3], "float32", bytes(11)), "huge": array([1 << 62, 1 << 62], "float32", b""),
        "odd": array([1], "complex256", bytes(32)), "negative": array([-1], "int8", b""),
        "nothing": b"\xc7\x00\x01", "good": array([2], "int8", b"\x01\x02"),
    }  # fmt: skip
    content = b"".join(packed(name) + value for name, value in entries.items())
    (tmp_path / "a.msgpack").write_bytes(b"\xdf" + struct.pack(">I", len(entries)) + content)

    tensors, left_out = loaded(tmp_path / "a.msgpack")

    assert list(tensors) == ["good"]
    assert left_out.keys() == entries.keys() - {"good"}
    assert left_out["odd"] == "dtype complex256" and "size" in left_out["short"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff" + b"\x01\x01" * 9,
        b"\xdd\xff\xff\xff\xff" + bytes(9),
        b"\xc1",
        b"",
    ],
    ids=["nested", "a huge map", "a huge list", "unused", "empty"],
)
def test_hostile_files_are_refused(tmp_path, raw):
    (tmp_path / "a.msgpack").write_bytes(raw)

    with pytest.raises(InvalidFileError):
        loaded(tmp_path / "a.msgpack")


def test_other_files_are_not_taken_for_flax(tmp_path):
    for path in filter(Path.is_file, (FORMS / "conv").glob("*/*")):
        assert FORMAT.matches(path.read_bytes()[:512], path) == (path.suffix == ".msgpack")


def test_many_values_are_too_many():
    with pytest.raises(InvalidFileError, match="too many"):
        Unpacker(np.frombuffer(b"\xdc\x00\x64" + bytes(100), np.uint8), values=100).read()
