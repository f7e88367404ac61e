"""Folders of torch.distributed.checkpoint: `.metadata` and the chunks in `.distcp` files."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

from hf_fingerprint.checkpoints import find_weight_sets, open_checkpoint
from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.pytorch.distributed_checkpoints import FORMAT
from hf_fingerprint.checkpoints.formats.torch_tensors import LazyTensor
from tests.helpers.forms import FORMS, copy_weights, read_tensor


MADE = FORMS / "vit/made/distributed"
ONE = "blocks.0.mlp.fc1.weight"


def load(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    left_out: dict[str, str] = {}
    return dict(FORMAT.load(path, left_out).tensors), left_out


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(MADE, tmp_path / "checkpoint"))


def change(folder: Path, name: str, **changes: object) -> None:
    """Changes where the first chunk of a tensor lies."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for index, info in metadata.storage_data.items():
        if index.fqn == f"model.{name}":
            vars(info).update(changes)
            break
    path.write_bytes(pickle.dumps(metadata))


def test_every_tensor_is_joined_from_its_chunks():
    path = MADE / ".metadata"
    assert FORMAT.matches(path.read_bytes()[:512], path)

    found, left_out = load(path)

    expected = copy_weights("vit")
    assert not left_out
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read_tensor(found[name]), value)
    assert {each.name for each in FORMAT.load(path, {}).companions} == {"__0_0.distcp", "__1_0.distcp"}


def test_the_folder_is_one_suspect(folder):
    found = find_weight_sets(folder)

    assert [path.name for each in found.sets for path in each.weights] == [".metadata"]
    assert not found.unread
    with open_checkpoint(found.sets[0], suspect=True) as opened:
        assert opened.tensors[ONE].shape == (192, 48)


def test_the_companions_are_those_of_the_folder():
    names = ["a/.metadata", "a/__0_0.distcp", "b/__0_0.distcp", "a/b/__0_0.distcp", "a/config.json"]

    assert list(FORMAT.companions("a/.metadata", names)) == ["a/__0_0.distcp"]
    assert list(FORMAT.companions("a/__0_0.distcp", names)) == []


def test_a_part_alone_gives_its_chunks(tmp_path):
    path = tmp_path / "renamed.bin"
    shutil.copyfile(MADE / "__1_0.distcp", path)
    assert FORMAT.matches(path.read_bytes()[:512], path)

    found, left_out = load(path)

    half = copy_weights("vit")[ONE][96:]
    near = [each for each in found.values() if each.shape == half.shape]
    assert any(np.array_equal(read_tensor(each), half) for each in near)
    assert not left_out


def test_an_ordinary_file_is_no_part(tmp_path):
    stream = (tmp_path / "x.pt").open("wb")
    with stream:
        torch.save({"a": torch.ones(2)}, stream)

    assert not FORMAT.matches((tmp_path / "x.pt").read_bytes()[:512], tmp_path / "x.pt")


def test_a_missing_file_is_named(folder):
    (folder / "__1_0.distcp").unlink()

    found, left_out = load(folder / ".metadata")

    assert left_out[f"model.{ONE}"] == "in __1_0.distcp, which is missing: download the model again, all of its files"
    assert not found  # each tensor has a chunk there
    assert {f"model.{name}" for name in copy_weights("vit")} <= left_out.keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relative_path": "../checkpoint/__0_0.distcp"}, "outside its folder"),
        ({"relative_path": "/etc/hostname"}, "outside its folder"),
        ({"relative_path": "link"}, "a link to outside"),
        ({"relative_path": "."}, "outside its folder"),
        ({"relative_path": "a\0b"}, "missing"),
        ({"relative_path": "a" * 5000}, "is missing"),
        ({"offset": 1 << 61}, "cut off or damaged"),
        ({"offset": -5}, "cut off or damaged"),
        ({"length": 0}, "cut off or damaged"),
        ({"offset": "0"}, "a chunk without a place"),
        ({"transform_descriptors": ["zstd"]}, "compressed chunks"),
    ],
)
def test_a_chunk_that_lies_elsewhere_leaves_its_tensor_out(folder, changes, reason):
    (folder.parent / "outside.distcp").write_bytes((folder / "__0_0.distcp").read_bytes())
    (folder / "link").symlink_to("../outside.distcp")
    change(folder, ONE, **changes)

    found, left_out = load(folder / ".metadata")

    assert reason in left_out[f"model.{ONE}"]
    assert len(found) == len(copy_weights("vit")) - 1


def test_chunks_that_overlap_leave_others_missing(folder):
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    described = metadata.state_dict_metadata[f"model.{ONE}"]
    described.chunks = described.chunks[:1]
    path.write_bytes(pickle.dumps(metadata))

    assert load(path)[1] == {f"model.{ONE}": "chunks are missing: give the whole folder"}


def test_more_chunks_than_the_limit_are_left_out(folder, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.checkpoints.formats.pytorch.distributed_checkpoints._MOST_CHUNKS", 9)

    found, left_out = load(folder / ".metadata")

    assert 0 < len(found) < 9
    assert "beyond the limit" in left_out[f"model.{ONE}"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x80\x04\x95", pickle.dumps({MetadataIndex("a"): 1})])
def test_a_damaged_list_is_refused(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(content)

    with pytest.raises(InvalidFileError):
        load(tmp_path / ".metadata")


def test_what_torch_writes_is_what_the_tests_change():
    assert set(vars(_StorageInfo("a", 0, 1))) == {"relative_path", "offset", "length", "transform_descriptors"}
