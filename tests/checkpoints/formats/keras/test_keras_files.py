"""Keras's files, and what else HDF5 holds."""

import struct
import zipfile

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.keras import hdf5_bytes
from hf_fingerprint.checkpoints.formats.keras.hdf5_bytes import NOWHERE
from hf_fingerprint.checkpoints.formats.keras.hdf5_objects import HDF5_MAGIC
from hf_fingerprint.checkpoints.formats.keras.keras_files import FORMAT
from tests.helpers.forms import FORMS, best_matches, copy_weights, kind_of, made
from tests.helpers.forms import read_tensor as values_of


ODD = FORMS / "odd_hdf5"


def loaded(path):
    left_out = {}
    found = FORMAT.load(path, left_out)
    return dict(found.tensors), left_out, found.producer


@pytest.mark.parametrize("path", made("deflated.keras") + made("*.h5"), ids=lambda path: path.name)
def test_the_weights_of_layers_are_found_with_their_values(path):
    tensors, left_out, _ = loaded(path)

    assert left_out == {}
    found = {name: values_of(tensor) for name, tensor in tensors.items()}
    # Keras splits the fused projection of attention
    matched = {name: score for name, score in best_matches(found, kind_of(path)).items() if "qkv" not in name}
    assert len(matched) > 5 and min(matched.values()) > 1 - 1e-9


def test_kernels_keep_the_order_of_axes_of_the_file():
    tensors, _, producer = loaded(FORMS / "conv" / "made" / "gzip.h5")

    kernel = values_of(tensors["model_weights/layer4_0_conv1/layer4_0_conv1/kernel"])
    np.testing.assert_array_equal(kernel, copy_weights("conv")["layer4.0.conv1.weight"].transpose(2, 3, 1, 0))
    assert producer.startswith("Keras 3.")
    assert loaded(FORMS / "conv" / "made" / "deflated.keras")[2] == producer


def test_codes_of_quantized_layers_are_given_with_their_scales():
    tensors, left_out, _ = loaded(FORMS / "vit" / "made" / "int8.keras")

    codes, scales = tensors["layers/dense/vars/0"], tensors["layers/dense/vars/2"]
    kernel = values_of(codes) / values_of(scales)  # as Keras has it
    assert left_out == {} and codes.dtype == "int8"
    step = 1 / values_of(scales)
    assert (np.abs(kernel - copy_weights("vit")["blocks.0.mlp.fc1.weight"].T) <= step * 0.501).all()


@pytest.mark.parametrize("name", ["odd", "latest"])
def test_each_kind_of_data_set_is_read_from_any_byte_or_named_with_a_reason(name):
    tensors, left_out, producer = loaded(ODD / f"{name}.h5")

    same = {"first/again": "dtypes/f4"}  # two names of one data set
    with np.load(ODD / f"{name}.npz") as expected:
        assert {same.get(each, each) for each in tensors} == {same.get(each, each) for each in expected.files}
        for each, tensor in tensors.items():
            values = expected[same.get(each, each)]
            raw = values.tobytes()
            assert (tensor.shape, tensor.read().tobytes()) == (values.shape, raw)
            for start, stop in [(0, 7), (3, len(raw) - 1), (len(raw) // 2, len(raw)), (5, 5)]:
                assert tensor.read(start, stop).tobytes() == raw[start:stop]
    assert producer == "Keras 9.9"
    assert left_out["in another file"] == "in another file"
    assert left_out["unwritten"] == "no data"
    assert "other order of bytes" in left_out["dtypes/>f4"]
    assert tensors["dtypes/bfloat16"].dtype == "bfloat16" and tensors["dtypes/u2"].dtype == "uint16"
    assert not any("elsewhere" in each or "top" in each for each in [*tensors, *left_out])
    if name == "odd":
        assert left_out["chunks/part"] == "in part never written"
        assert "gzip" in left_out["chunks/lzf"]


def test_files_are_recognized_by_their_content(tmp_path):
    for path in made("*.keras") + made("*.h5"):
        assert FORMAT.matches(path.read_bytes()[:512], path)
    for path in made("*.npz") + made("*.msgpack"):
        assert not FORMAT.matches(path.read_bytes()[:512], path)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as other:
        other.writestr("metadata.json", "{}")
    assert not FORMAT.matches((tmp_path / "a.keras").read_bytes(), tmp_path / "a.keras")


def test_a_cut_off_file_gives_what_lies_before_the_end(tmp_path):
    whole = (FORMS / "vit" / "made" / "keras.weights.h5").read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(whole[:-50_000])

    tensors, left_out, _ = loaded(path)

    assert tensors and any("cut off" in reason for reason in left_out.values())
    path.write_bytes(whole[:20])
    with pytest.raises(InvalidFileError, match="cut off"):
        loaded(path)


def test_a_tree_that_leads_to_one_leaf_many_times_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_bytes, "MAX_STEPS", 10_000)
    raw = (FORMS / "vit" / "made" / "keras.weights.h5").read_bytes()
    root, leaf = raw.index(b"TREE"), raw.index(b"SNOD")
    raw = raw.replace(struct.pack("<Q", root), struct.pack("<Q", len(raw)))
    raw += b"TREE" + struct.pack("<BBHQQ", 0, 0, 20_000, NOWHERE, NOWHERE) + struct.pack("<QQ", 0, leaf) * 20_000
    path = tmp_path / "wide.h5"
    path.write_bytes(raw)

    with pytest.raises(InvalidFileError, match="10,000 parts"):
        loaded(path)


def header_of(*messages):
    """An object header of version 1."""
    body = b"".join(struct.pack("<HHI", kind, len(each), 0) + each for kind, each in messages)
    return struct.pack("<BBHIII", 1, 0, len(messages), 1, len(body), 0) + body


def test_chunks_that_unpack_to_many_times_the_file_are_refused(tmp_path):
    header = header_of(
        (1, struct.pack("<BBBBIQ", 1, 1, 0, 0, 0, 1 << 40)),
        (3, struct.pack("<BBBBIHHBBBBI", 0x11, 0x20, 31, 0, 4, 0, 32, 23, 8, 0, 23, 127)),
        (8, struct.pack("<BBBQII", 3, 2, 2, NOWHERE, 1 << 20, 4)),
    )
    superblock = HDF5_MAGIC + struct.pack("<BBBBQQQQI", 2, 8, 8, 0, 0, NOWHERE, 0, 48, 0)
    path = tmp_path / "bomb.h5"
    path.write_bytes(superblock + header)

    tensors, left_out, _ = loaded(path)

    assert (tensors, left_out) == ({}, {"": "chunks that unpack to many times the size of the file"})
