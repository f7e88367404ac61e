"""Weights of GGUF files, as the gguf package wrote them, and as attackers would."""

import struct
from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats import gguf_files
from hf_fingerprint.checkpoints.formats.computed_tensors import stored_rows, stored_values
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.ggml_blocks import BLOCK_TYPES
from hf_fingerprint.checkpoints.formats.gguf_files import FORMAT
from tests.helpers.forms import FORMS, copy_weights, kind_of, made


def load(path):
    left_out: dict[str, str] = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


def text(value, width="Q"):
    return struct.pack(f"<{width}", len(value)) + value


def tensor(name, shape, kind, offset, width="Q"):
    sizes = struct.pack(f"<{len(shape)}{width}", *shape[::-1])
    return text(name, width) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def written(folder, infos, data=b"", metadata=(), version=3, alignment=32):
    width = "I" if version == 1 else "Q"
    head = b"GGUF" + struct.pack(f"<I2{width}", version, len(infos), len(metadata)) + b"".join(metadata)
    head += b"".join(infos)
    path = folder / "model.gguf"
    path.write_bytes(head + bytes(-len(head) % alignment) + data)
    return path


@pytest.mark.parametrize("path", made("*.gguf"), ids=lambda path: path.name)
def test_a_copy_is_read_under_its_own_names_and_shapes(path):
    found, left_out = load(path)

    assert not left_out
    assert FORMAT.matches(path.read_bytes()[:512], path)
    assert FORMAT.load(path, {}).producer in ("resnet10t", "vit_tiny_patch16_224")
    expected = {name: values for name, values in copy_weights(kind_of(path)).items() if values.dtype == np.float32}
    assert found.keys() == expected.keys()
    bound = {"f16": 1e-3, "bf16": 8e-3, "q8_0": 0.02, "q5_1": 0.2, "q4_0": 0.3}[path.stem]
    for name, values in expected.items():
        read = stored_values(found[name])
        assert read.shape == values.shape
        assert np.abs(read - values).max() <= bound * np.abs(values).max()


def test_blocks_of_each_type_have_the_values_that_gguf_gives_them():
    found, left_out = load(FORMS / "ggml_types.gguf")

    assert not left_out
    names = [kind.name for kind in BLOCK_TYPES.values()]
    assert found.keys() == {*names, *(f"{name} as float32" for name in names)}
    for name in names:
        expected = stored_values(found[f"{name} as float32"])
        np.testing.assert_allclose(stored_values(found[name]), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(stored_rows(found[name])(1, 2), stored_values(found[name])[1:2])
        assert found[name].stored == name


@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_version_is_read(tmp_path, version):
    width = "I" if version == 1 else "Q"
    values = np.arange(40, dtype=np.float32)
    metadata = [
        text(b"general.alignment", width) + struct.pack("<2I", 4, 64),
        text(b"a list of lists", width) + struct.pack(f"<2I{width}I{width}3H", 9, 9, 1, 2, 3, 1, 2, 3),
        text(b"general.architecture", width) + struct.pack("<I", 8) + text(b"vit", width),
    ]
    infos = [tensor(b"w", (4, 2, 5), 0, 0, width), tensor(b"b", (), 0, 4, width)]
    path = written(tmp_path, infos, values.tobytes(), metadata, version, alignment=64)

    found, left_out = load(path)

    assert not left_out
    assert FORMAT.load(path, {}).producer == "vit"
    np.testing.assert_array_equal(stored_values(found["w"]), values.reshape(4, 2, 5))
    assert stored_values(found["b"]) == 1


def test_a_vector_of_blocks_is_read_in_any_rows(tmp_path):
    blocks = [np.float16(scale).tobytes() + np.arange(32, dtype=np.int8).tobytes() for scale in (1, 2)]

    found, _ = load(written(tmp_path, [tensor(b"v", (64,), 8, 0)], b"".join(blocks)))

    expected = np.concatenate([np.arange(32), 2 * np.arange(32)])
    np.testing.assert_array_equal(stored_values(found["v"]), expected)
    np.testing.assert_array_equal(stored_rows(found["v"])(30, 35), expected[30:35])


@pytest.mark.parametrize(
    ("shape", "kind", "reason"),
    [
        ((4, 32), 16, "type IQ2_XXS"),
        ((4, 32), 4, "type 4"),
        ((4, 32), 0, "cut off"),
        ((1 << 60, 1 << 60), 0, "cut off"),
        ((4, 16), 8, "does not fit Q8_0"),
        ((), 8, "does not fit Q8_0"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, shape, kind, reason):
    found, left_out = load(written(tmp_path, [tensor(b"\x1b[2Jw", shape, kind, 0)], bytes(68)))

    assert not found
    assert reason in left_out["\x1b[2Jw"]


HEAD = b"GGUF" + struct.pack("<I", 3)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"GGUF", "cut off"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(16), "version 9"),
        (HEAD + struct.pack("<2Q", 1 << 40, 0), "more than 100000 tensors"),
        (HEAD + struct.pack("<2Q", 1, 0), "cut off"),
        (HEAD + struct.pack("<2Q", 0, 1 << 63), "cut off"),
        (HEAD + struct.pack("<2Q", 0, 1 << 40), "cut off"),
        (HEAD + struct.pack("<2Q", 0, 1) + text(b"k") + struct.pack("<I", 99), "unknown type"),
        (HEAD + struct.pack("<2Q", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 5, 1 << 50), "cut off"),
        (
            HEAD + struct.pack("<2Q", 0, 1) + text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9,
            "unknown type",
        ),
        (HEAD + struct.pack("<2Q", 0, 1) + text(b"general.alignment") + struct.pack("<2I", 4, 0), "invalid alignment"),
        (HEAD + struct.pack("<2Q", 1, 0) + text(b"w") + struct.pack("<I", 65) + bytes(999), "too many dimensions"),
    ],
)
def test_damaged_files_are_refused(tmp_path, raw, reason):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)

    with pytest.raises(InvalidFileError, match=reason):
        load(path)


def test_metadata_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_files, "MAX_ITEMS", 50)
    texts = text(b"k") + struct.pack("<2IQ", 9, 8, 60) + text(b"") * 60

    with pytest.raises(InvalidFileError, match="more than 50 values"):
        load(written(tmp_path, [], metadata=[texts]))


def test_other_files_are_not_gguf():
    assert not FORMAT.matches(b"ggml" + bytes(508), Path("model.gguf"))
