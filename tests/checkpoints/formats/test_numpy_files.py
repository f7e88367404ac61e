"""NumPy's files, without pickle."""

import io
import zipfile

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats import numpy_files
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.numpy_files import FORMAT
from tests.helpers.forms import FORMS, best_matches, copy_weights, kind_of, made, read_tensor


VALUES = np.random.default_rng(0).normal(size=(7, 5, 3))


def loaded(path):
    left_out = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


def npy(header, content=b"", version=1):
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + content


@pytest.mark.parametrize("path", made("*.npz"), ids=lambda path: path.name)
def test_arrays_are_found_with_their_values(path):
    tensors, left_out = loaded(path)

    assert left_out == {}
    rounded = 1e-5 if "bf16" in path.name else 1e-9
    found = best_matches({name: read_tensor(tensor) for name, tensor in tensors.items()}, kind_of(path))
    # Flax splits the fused projection of attention
    assert min(score for name, score in found.items() if "qkv" not in name) > 1 - rounded


def test_names_and_axes_are_those_of_the_file():
    tensors, _ = loaded(FORMS / "vit" / "made" / "google_bf16.npz")

    query = tensors["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"]
    expected = copy_weights("vit")["blocks.0.attn.qkv.weight"][:48].T.reshape(48, 2, 24)
    assert query.dtype == "bfloat16"
    np.testing.assert_allclose(read_tensor(query), expected, rtol=1 / 128)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u1", "u2", "u4", "i8", "?"])
def test_each_dtype_is_read_in_either_order_from_any_byte(tmp_path, save, dtype):
    values = VALUES.astype(dtype)
    arrays = {"a/rows": values, "a/columns": np.asfortranarray(values), "number": values[0, 0, 0], "none": values[:0]}
    save(tmp_path / "a.npz", **arrays)

    tensors, left_out = loaded(tmp_path / "a.npz")

    assert left_out == {} and list(tensors) == list(arrays)
    for name, tensor in tensors.items():
        raw = arrays[name].tobytes()
        assert tensor.shape == arrays[name].shape and tensor.unreadable_reason() is None
        for start, stop in [(0, None), (4, len(raw)), (0, len(raw) // 3), (len(raw) // 2, len(raw) - 1)]:
            assert tensor.read(start, stop).tobytes() == raw[start:stop]


def test_a_file_of_one_array_has_its_name(tmp_path):
    np.save(tmp_path / "kernel.npy", VALUES.astype(np.float32))

    tensors, left_out = loaded(tmp_path / "kernel.npy")

    assert left_out == {}
    np.testing.assert_array_equal(read_tensor(tensors["kernel"]), VALUES.astype(np.float32))


def test_what_can_not_be_read_is_named_with_the_reason(tmp_path):
    members = {
        "pickled": np.array([{}, 3], dtype=object),
        "big": VALUES.astype(">f4"),
        "text": np.array(["a", "b"]),
        "fields": np.zeros(3, [("a", "f4"), ("b", "i4")]),
        "good": VALUES,
    }
    np.savez(tmp_path / "a.npz", **members)

    tensors, left_out = loaded(tmp_path / "a.npz")

    assert list(tensors) == ["good"]
    assert left_out["pickled"] == "a pickled array"
    assert "other order of bytes" in left_out["big"]
    assert left_out["text"].startswith("dtype") and left_out["fields"].startswith("dtype")


@pytest.mark.parametrize(
    "content",
    [
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }\n", bytes(35)),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }\n", bytes(35)),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", bytes(35)),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 4000),
        npy(b"-" * 4000 + b"1"),
        npy(b"1" + b"+1" * 2000),
        npy(b"[" * 90 + b"]" * 90),
        npy(b"{'descr': [" * 200),
        npy(b"9" * 4000),
        npy(b"__import__('os').system('true')"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        b"\x93NUMPY\x03\x00\x02\x00\x00\x00{}",
        b"\x93NUMPY",
    ],
    ids=lambda content: content[8:40].decode("latin-1"),
)
def test_hostile_headers_are_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.npy", content)

    with pytest.raises(InvalidFileError):
        loaded(tmp_path / "a.npy")
    tensors, left_out = loaded(tmp_path / "a.npz")
    assert tensors == {} and list(left_out) == ["a"]


def test_large_compressed_arrays_in_columns_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_files, "MAX_EXPANSION", 500)
    np.savez_compressed(tmp_path / "a.npz", rows=VALUES, columns=np.asfortranarray(VALUES))

    tensors, left_out = loaded(tmp_path / "a.npz")

    assert list(tensors) == ["rows"] and "column-major" in left_out["columns"]


def test_files_are_recognized_by_their_content(tmp_path):
    for path in made("*.npz"):
        assert FORMAT.matches(path.read_bytes()[:512], path)
    assert not FORMAT.matches(made("*.keras")[0].read_bytes()[:512], made("*.keras")[0])
    one = io.BytesIO()
    np.save(one, VALUES)
    assert FORMAT.matches(one.getvalue()[:512], tmp_path / "weights")
    with zipfile.ZipFile(tmp_path / "app.apk", "w") as made_app:
        made_app.writestr("assets/mean.npy", one.getvalue())
        made_app.writestr("classes.dex", "")
    assert not FORMAT.matches((tmp_path / "app.apk").read_bytes()[:512], tmp_path / "app.apk")
