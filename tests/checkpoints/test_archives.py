"""Archives and apps are unpacked to find the models inside, whatever they try."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from hf_fingerprint.checkpoints import archives, find_weight_sets, open_checkpoint, weight_sets
from hf_fingerprint.checkpoints.archives import is_archive, unpack_archive


A = np.arange(60, dtype=np.float32).reshape(6, 10)
MODEL, OTHER = save({"a": A}), save({"b": A + 1})
PICTURE = b"\x89PNG\r\n\x1a\n" + b"x" * 1000


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return path


def tarred(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def names_of(found) -> list[list[str]]:
    """The names of the tensors in each set."""
    names = []
    for source in found.sets:
        with open_checkpoint(source, suspect=True) as opened:
            names.append(sorted(opened.tensors))
            for info in opened.tensors.values():
                opened.read(info)
    return names


def test_each_model_in_an_app_is_a_set_that_is_shown_by_its_path(tmp_path):
    app = zipped(
        tmp_path / "app.apk",
        {
            "AndroidManifest.xml": b"\x03\x00\x08\x00" + b"x" * 200,
            "res/icon.png": PICTURE,
            "assets/models/net.safetensors": MODEL,
            "assets/blob.dat": OTHER,
            "assets/readme.txt": b"text" * 100,
        },
    )

    found = find_weight_sets(app)

    assert sorted(names_of(found)) == [["a"], ["b"]]
    assert {source.shown_files for source in found.sets} == {
        ("app.apk/assets/models/net.safetensors",),
        ("app.apk/assets/blob.dat",),
    }
    assert {source.name for source in found.sets} == {str(app)}
    assert found.unread == ()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_are_unpacked(tmp_path, mode):
    found = find_weight_sets(tarred(tmp_path / "model.tar.gz", {"m/model.safetensors": MODEL}, mode))

    assert names_of(found) == [["a"]]


@pytest.mark.parametrize(("end", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_single_packed_file_is_unpacked(tmp_path, end, pack):
    path = tmp_path / f"model.safetensors.{end}"
    path.write_bytes(pack(MODEL))

    assert names_of(find_weight_sets(path)) == [["a"]]
    assert names_of(find_weight_sets(tmp_path)) == [["a"]]


def test_archives_in_archives_are_unpacked_down_to_a_limit(tmp_path):
    path, inner = tmp_path / "0.zip", MODEL
    for depth in range(5):
        zipped(path, {f"in{depth}.safetensors" if depth == 0 else f"in{depth}.zip": inner})
        inner = path.read_bytes()
        found = find_weight_sets(path)
        assert names_of(found) == ([["a"]] if depth < 3 else [])
        assert [reason for _, reason in found.unread] == (
            [] if depth < 3 else ["an archive in too many archives: unpack it"]
        )


def test_the_unpacked_files_are_deleted_with_the_sets(tmp_path):
    found = find_weight_sets(zipped(tmp_path / "x.zip", {"model.safetensors": MODEL}))
    place = found.sets[0].folder
    assert place.is_dir()

    del found

    assert not place.exists()


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "/etc/out.safetensors", "a/../../../out.safetensors", "..\\out.safetensors", "C:\\out"],
)
def test_no_member_is_written_outside(tmp_path, name):
    path = zipped(tmp_path / "x.zip", {name: MODEL})

    unpacked = unpack_archive(path, "x.zip")

    assert [p for p in unpacked.folder.rglob("*") if p.is_file()] != []
    assert all(p.resolve().is_relative_to(unpacked.folder.resolve()) for p in unpacked.folder.rglob("*"))
    assert names_of(find_weight_sets(path)) == [["a"]]
    assert not list(tmp_path.parent.glob("out*"))


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(OTHER)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, target in [
            ("link.safetensors", tarfile.SYMTYPE, str(tmp_path / "secret.safetensors")),
            ("hard.safetensors", tarfile.LNKTYPE, "../secret.safetensors"),
            ("device", tarfile.CHRTYPE, ""),
            ("pipe", tarfile.FIFOTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("model.safetensors")
        info.size = len(MODEL)
        archive.addfile(info, io.BytesIO(MODEL))

    assert names_of(find_weight_sets(path)) == [["a"]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_whose_names_are_taken_are_read_too(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [("m", MODEL), ("m", OTHER), ("m/model.safetensors", save({"c": A}))]:
            archive.writestr(zipfile.ZipInfo(name), content)

    assert sorted(names_of(find_weight_sets(path))) == [["a"], ["b"], ["c"]]


def test_an_archive_that_unpacks_to_many_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_EXPANSION", 1 << 20)
    bombs = {
        "x.zip": zipped(tmp_path / "x.zip", {"model.safetensors": bytes(1 << 26)}),
        "x.tar.gz": tarred(tmp_path / "x.tar.gz", {"model.safetensors": bytes(1 << 26)}, "w:gz"),
    }
    (tmp_path / "model.bin.gz").write_bytes(gzip.compress(bytes(1 << 26)))
    bombs["model.bin.gz"] = tmp_path / "model.bin.gz"

    for name, path in bombs.items():
        found = find_weight_sets(path)
        assert found.sets == ()
        assert (name, "unpacks to many times its size: unpack it yourself, and give the folder") in found.unread


def test_encrypted_members_are_named(tmp_path):
    path = zipped(tmp_path / "x.zip", {"model.safetensors": MODEL, "b.safetensors": OTHER})
    raw = bytearray(path.read_bytes())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(magic) + flags] |= 1
    path.write_bytes(raw)

    found = find_weight_sets(path)

    assert names_of(found) == [["b"]]
    assert found.unread == (("x.zip", "holds 1 encrypted or sparse files: unpack it, and give the folder"),)


@pytest.mark.parametrize("cut", [40, 100, -30])
def test_what_is_left_of_a_damaged_archive_is_read(tmp_path, cut):
    path = tarred(tmp_path / "x.tar.gz", {"model.safetensors": MODEL, "b.bin": os.urandom(500)}, "w:gz")
    path.write_bytes(path.read_bytes()[:cut])

    found = find_weight_sets(path)

    assert any("is damaged" in reason for _, reason in found.unread)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_ARCHIVE_MEMBERS", 3)
    path = zipped(tmp_path / "x.zip", {f"{n}.safetensors": MODEL for n in range(4)})

    found = find_weight_sets(path)

    assert len(found.sets) == 3
    assert "holds more than 3 files" in found.unread[0].reason


def test_more_sets_than_are_read_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_sets, "MAX_SETS", 2)
    for number in range(3):
        zipped(tmp_path / f"{number}.zip", {"model.safetensors": MODEL})

    found = find_weight_sets(tmp_path)

    assert len(found.sets) == 2
    assert [(name, "beyond the limit" in reason) for name, reason in found.unread] == [
        ("2.zip/model.safetensors", True)
    ]


def test_a_tar_with_a_huge_header_takes_no_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf() + b"x" * 2000)

    assert any("header that is too large" in reason for _, reason in find_weight_sets(path).unread)


def test_weight_files_that_are_zips_are_no_archives(tmp_path):
    import torch

    torch.save({"a": torch.ones(4)}, tmp_path / "model.pt")

    assert not is_archive(tmp_path / "model.pt")
    assert not is_archive(tmp_path / "missing")
    assert is_archive(zipped(tmp_path / "x.bin", {"a": MODEL}))


def test_a_header_whose_size_looks_like_another_file_hides_no_model(tmp_path):
    weights = b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'.ljust(256) + bytes(64)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("model.safetensors", (256).to_bytes(8, "little") + weights)  # as a font begins

    found = find_weight_sets(tmp_path / "app.zip")

    assert [source.shown_files for source in found.sets] == [("app.zip/model.safetensors",)]


@pytest.mark.parametrize("folder", ["node_modules", ".git", "venv"])
def test_every_folder_of_an_archive_is_searched(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr(f"{folder}/model.safetensors", save({"a": np.ones((8, 8), np.float32)}))

    assert len(find_weight_sets(tmp_path / "app.zip").sets) == 1


def test_a_sparse_file_in_a_tar_is_reported(tmp_path):
    header = tarfile.TarInfo("model.safetensors")
    header.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))

    found = find_weight_sets(tmp_path / "a.tar")

    assert not found.sets and "sparse" in found.unread[0].reason
