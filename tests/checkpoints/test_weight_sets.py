"""Every set of weight files of a suspect is found, and unreadable files are listed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from hf_fingerprint.checkpoints import WeightSets, find_weight_sets, open_checkpoint, opening_sets
from hf_fingerprint.checkpoints.limits import MAX_SETS
from tests.helpers.checkpoint_files import refused, save_model, save_shards
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_hub_repos import Blob


A, B = np.arange(6, dtype=np.float32), np.arange(4, dtype=np.float32)
SHARDS = {"model-00001-of-00002.safetensors": {"a": A}, "model-00002-of-00002.safetensors": {"b": B}}
LARGE = save({"a": np.zeros(100_000, np.float32)})


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on 127.0.0.1 that the real client talks to, with an empty cache."""
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        yield server


def pickled(path: Path, **tensors: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
    return path


def shown(found: WeightSets, folder: Path) -> list[list[str]]:
    """The files of each set, in its order."""
    return [[path.relative_to(folder).as_posix() for path in source.weights] for source in found.sets]


def opened(found: WeightSets) -> list[list[str]]:
    """The tensors of each set."""
    names = []
    for source in found.sets:
        with open_checkpoint(source, suspect=True) as checkpoint:
            for info in checkpoint.tensors.values():
                checkpoint.read(info)
            names.append(list(checkpoint.tensors))
    return names


def test_a_decoy_next_to_the_model_is_a_separate_set(tmp_path):
    save_model(tmp_path / "model.safetensors", decoy=A)
    pickled(tmp_path / "stolen.bin", a=A)

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [["model.safetensors"], ["stolen.bin"]]
    assert opened(found) == [["decoy"], ["a"]]
    assert found.unread == ()
    assert {source.name for source in found.sets} == {str(tmp_path)}
    assert all(source.owns_folder for source in found.sets)


def test_several_files_that_are_ambiguous_for_a_base_are_a_set_each(tmp_path):
    for name in ("x.safetensors", "y.safetensors", "z.pth", "w.ckpt", "v.pt"):
        save_model(tmp_path / name, a=A) if name.endswith("s") else pickled(tmp_path / name, a=A)

    found = find_weight_sets(tmp_path)

    assert sorted(source.weights for source in found.sets) == sorted((path,) for path in tmp_path.iterdir())
    assert "several weight files" in refused(open_checkpoint, tmp_path)


def test_an_index_with_its_shards_is_one_set_and_a_file_next_to_it_another(tmp_path):
    save_shards(tmp_path, SHARDS)
    save_model(tmp_path / "more.safetensors", c=A)

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [list(SHARDS), ["more.safetensors"]]
    assert opened(found) == [["a", "b"], ["c"]]
    assert found.sets[0].index == tmp_path / "model.safetensors.index.json"


def test_files_named_like_shards_without_an_index_are_one_set(tmp_path):
    for shard, arrays in SHARDS.items():
        save_model(tmp_path / shard, **arrays)
    pickled(tmp_path / "pytorch_model-00001-of-00001.bin", c=A)

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [list(SHARDS), ["pytorch_model-00001-of-00001.bin"]]
    assert opened(found) == [["a", "b"], ["c"]]
    assert found.unread == ()


def test_shards_that_are_missing_are_named_and_the_others_are_read(tmp_path):
    save_shards(tmp_path, SHARDS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()

    found = find_weight_sets(tmp_path)

    assert opened(found) == [["a"]]
    ((name, reason),) = found.unread
    assert (name, "download the model again" in reason) == ("model-00002-of-00002.safetensors", True)
    (tmp_path / "model.safetensors.index.json").unlink()
    ((name, reason),) = find_weight_sets(tmp_path).unread
    assert reason == "1 of 00002 parts are here: download the others"


def test_a_decoy_index_hides_nothing(tmp_path):
    save_shards(tmp_path, SHARDS, a="model-00001-of-00002.safetensors")
    pickled(tmp_path / "model-00003-of-00003.bin", c=A)

    assert sorted(map(sorted, opened(find_weight_sets(tmp_path)))) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "not an index"),
        ("[" * 100_000, "not an index"),
        ('{"weight_map": {}}', "names no weight files"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": "config.json"}}', "not a weight file"),
    ],
)
def test_a_hostile_index_is_named_and_its_shards_are_read(tmp_path, index, reason):
    save_shards(tmp_path, SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(index)

    found = find_weight_sets(tmp_path)

    assert opened(found) == [["a", "b"]]
    assert [(name, reason in why) for name, why in found.unread] == [("model.safetensors.index.json", True)]


def test_an_index_that_mixes_formats_becomes_a_set_of_each(tmp_path):
    save_model(tmp_path / "x.safetensors", a=A)
    pickled(tmp_path / "y.bin", b=B)
    weight_map = {"a": "x.safetensors", "b": "y.bin", "c": "z.h5"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "z.h5").write_bytes(b"x")

    found = find_weight_sets(tmp_path)

    assert opened(found) == [["a"], ["b"]]
    assert found.unread == (("z.h5", "is not a complete Keras file: download it again"),)


def test_training_state_is_not_a_set(tmp_path):
    save_model(tmp_path / "model.safetensors", a=A)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "checkpoint-5/optimizer.bin"):
        pickled(tmp_path / name, junk=A)

    found = find_weight_sets(tmp_path)

    assert (shown(found, tmp_path), found.unread) == ([["model.safetensors"]], ())
    assert shown(find_weight_sets(tmp_path / "optimizer.pt"), tmp_path) == [["optimizer.pt"]]  # if it is what is meant


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state_0.pth", "scheduler.bin", "optimizer.safetensors"])
def test_a_model_named_like_training_state_is_read(tmp_path, name):
    save_model(tmp_path / "model.safetensors", a=A)
    matrix = B.reshape(2, 2)
    save_model(tmp_path / name, w=matrix) if name.endswith("s") else pickled(tmp_path / name, w=matrix)

    assert shown(find_weight_sets(tmp_path), tmp_path) == [["model.safetensors"], [name]]


UNREAD = {
    "tf_model.h5": "file: download it again",
    "flax_model.msgpack": "file: download it again",
    "onnx/model.onnx": "file: download it again",
    "model.gguf": "file: download it again",
    "weights.npz": "file: download it again",
    "model.tflite": "file: download it again",
    "saved_model/variables/variables.data-00000-of-00001": "save it as .keras",
    "stolen.zip": "give a .safetensors file",
    "model.tar.gz": "give a .safetensors file",
    "model.tar.zst": "unpack it",
    "model.safetensors.bak": "rename it to .safetensors",
    "OLD.SAFETENSORS": "download it again",
    "adapter_model.safetensors": "download it again",
    "broken.safetensors": "download it again",
    "broken.bin": "download it again",
    "link.safetensors": "link to outside its folder",
    "lost.bin": "is missing",
    "pipe.bin": "not a regular file",
}


def test_each_unreadable_file_is_listed_with_a_remedy(tmp_path):
    folder = tmp_path / "model"
    for name in UNREAD:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in list(UNREAD)[:-3]:
        (folder / name).write_bytes(b"x" * 100)
    (folder / "link.safetensors").symlink_to(save_model(tmp_path / "outside.safetensors", a=A))
    (folder / "lost.bin").symlink_to(folder / "nowhere.bin")
    os.mkfifo(folder / "pipe.bin")
    (folder / "config.json").write_text("{}")

    found = find_weight_sets(folder)

    assert found.sets == ()
    assert {name for name, _ in found.unread} == set(UNREAD)
    for name, reason in found.unread:
        assert UNREAD[name] in reason
        assert str(tmp_path) not in reason
        assert len(reason.splitlines()) == 1


def test_subfolders_are_searched_and_training_checkpoints_come_last(tmp_path):
    for name in (
        "checkpoint-10/model.safetensors",
        "unet/x.bin",
        "deep/er/y.bin",
        ".hidden/z.bin",
        "model.safetensors",
    ):
        save_model(tmp_path / name, a=A) if name.endswith("s") else pickled(tmp_path / name, a=A)
    for name in (".git/model.safetensors", ".cache/x/model.safetensors", "venv/lib/model.safetensors"):
        save_model(tmp_path / name, a=A)

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [
        ["model.safetensors"],
        [".hidden/z.bin"],
        ["unet/x.bin"],
        ["deep/er/y.bin"],
        ["checkpoint-10/model.safetensors"],
    ]
    assert found.sets[1].folder == tmp_path / ".hidden"
    assert [source.owns_folder for source in found.sets] == [True, False, False, False, False]


def test_more_sets_than_the_limit_are_refused_with_a_remedy(tmp_path):
    for number in range(MAX_SETS):
        save_model(tmp_path / f"{number:02}.safetensors", a=A)
    assert len(find_weight_sets(tmp_path).sets) == MAX_SETS
    save_model(tmp_path / "more.safetensors", a=A)

    text = refused(find_weight_sets, tmp_path)

    assert "33 sets" in text
    assert "choose one with --file, such as --file 00.safetensors" in text


def test_training_checkpoints_fill_the_limit_of_sets(tmp_path):
    save_model(tmp_path / "model.safetensors", a=A)
    for number in range(40):
        save_model(tmp_path / f"checkpoint-{number:02}" / "model.safetensors", a=A)

    found = find_weight_sets(tmp_path)

    assert len(found.sets) == MAX_SETS
    assert shown(found, tmp_path)[0] == ["model.safetensors"]
    assert len(found.unread) == 9
    assert found.unread[0] == (
        "checkpoint-31/model.safetensors",
        "beyond the limit of 32 sets of weights: choose it with --file",
    )


def test_folders_that_are_not_searched_are_listed(tmp_path):
    save_model(tmp_path / "model.safetensors", a=A)
    (tmp_path / "many").mkdir()
    for number in range(1001):
        (tmp_path / "many" / f"{number}").touch()
    save_model(tmp_path / "kept" / "model.safetensors", a=A)
    (tmp_path / "kept" / "vault.db").touch()

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [["model.safetensors"]]
    assert [name for name, _ in found.unread] == ["kept/", "many/"]
    assert all("not searched" in reason and "give its path" in reason for _, reason in found.unread)


def test_a_damaged_shard_is_named_and_the_others_are_read(tmp_path):
    save_shards(tmp_path, SHARDS)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")

    found = find_weight_sets(tmp_path)

    assert opened(found) == [["b"]]
    assert [name for name, _ in found.unread] == ["model-00001-of-00002.safetensors"]


def test_a_file_or_an_index_named_directly_is_the_one_set(tmp_path):
    save_shards(tmp_path, SHARDS)
    pickled(tmp_path / "x.bin", c=A)
    (tmp_path / "y.h5").write_bytes(b"x")

    for name, files in [("x.bin", ["x.bin"]), ("model.safetensors.index.json", list(SHARDS))]:
        found = find_weight_sets(tmp_path / name)
        assert (shown(found, tmp_path), found.unread) == ([files], ())
        assert not found.sets[0].owns_folder
        assert found.sets[0].name == str(tmp_path / name)
    assert find_weight_sets(tmp_path / "y.h5") == WeightSets(
        (), (("y.h5", "is not a complete Keras file: download it again"),)
    )


def test_a_damaged_file_named_directly_is_unread(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x")

    found = find_weight_sets(tmp_path / "x.safetensors")

    assert found.sets == ()
    assert [name for name, _ in found.unread] == ["x.safetensors"]


def test_without_weights_the_error_is_that_of_resolve(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")

    for name in (tmp_path, tmp_path / "config.json", tmp_path / "gone", "a/b/c"):
        assert refused(find_weight_sets, name) == refused(open_checkpoint, name)


def test_the_same_files_under_two_indexes_are_one_set(tmp_path):
    save_shards(tmp_path, SHARDS)
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "other.safetensors.index.json").write_bytes(index.read_bytes())

    assert shown(find_weight_sets(tmp_path), tmp_path) == [list(SHARDS)]


# --- on the Hub


def served(hub: LoopbackHub) -> set[str]:
    return {name for name in hub.downloads() if not name.endswith(".json")}


def torch_bytes(tmp_path: Path, **tensors: np.ndarray) -> bytes:
    return pickled(tmp_path / "made.bin", **tensors).read_bytes()


def test_every_set_of_a_repo_is_fetched_and_nothing_else(hub, tmp_path):
    files = {shard: save(arrays) for shard, arrays in SHARDS.items()}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    repo = hub.add(
        "org/name",
        files
        | {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "stolen/x.bin": torch_bytes(tmp_path, c=A),
            "config.json": b"{}",
            "tf_model.h5": b"x" * 1000,
            "training_args.bin": b"x",
            "README.md": b"# x",
        },
        lfs=True,
    )

    found = find_weight_sets("org/name")

    assert opened(found) == [["a", "b"], ["c"]]
    assert found.unread == (("tf_model.h5", "is not a complete Keras file: download it again"),)
    assert {(source.name, source.revision) for source in found.sets} == {("org/name", repo.refs["main"])}
    assert served(hub) == {*SHARDS, "stolen/x.bin", "tf_model.h5"}
    hub.calls.clear()
    assert find_weight_sets("hf-hub:org/name") == found
    assert served(hub) == set()


def test_no_more_than_the_limit_is_fetched_and_what_exceeds_it_is_named(hub):
    hub.add("org/name", {"model.safetensors": save({"a": A}), "large.safetensors": LARGE}, lfs=True)

    found = find_weight_sets("org/name", max_bytes=300_000)

    assert opened(found) == [["a"]]
    left = (300_000 - len(save({"a": A}))) // 100_000 / 10
    assert found.unread == (
        ("large.safetensors", f"needs 0.5 MB, --max-mb allows 0.3 MB, of which {left} MB are left"),
    )
    assert served(hub) == {"model.safetensors"}
    assert hub.bytes_sent <= 300_000


def test_the_limit_is_for_all_files_together_and_what_is_cached_costs_nothing(hub):
    hub.add("org/name", {f"{n}.safetensors": LARGE for n in "abc"} | {"more.h5": b"x"})

    first = find_weight_sets("org/name", max_bytes=2 * len(LARGE))
    again = find_weight_sets("org/name", max_bytes=len(LARGE))

    assert [len(found.sets) for found in (first, again)] == [2, 3]
    assert first.unread[0] == ("c.safetensors", "needs 0.5 MB, --max-mb allows 0.8 MB, of which 0 MB are left")


def test_with_a_limit_below_every_file_all_are_unread(hub):
    hub.add("org/name", {"model.safetensors": LARGE, "config.json": b"{}"})

    found = find_weight_sets("org/name", max_bytes=0)

    assert found == WeightSets((), (("model.safetensors", "needs 0.5 MB, --max-mb allows 0 MB"),))
    assert hub.downloads() == set()


def test_a_size_that_is_not_known_is_too_large_for_a_limit(hub, monkeypatch):
    hub.add("org/name", {"model.safetensors": LARGE})
    monkeypatch.setattr(Blob, "sibling", lambda self, path, blobs: {"rfilename": path})

    found = find_weight_sets("org/name", max_bytes=10**9)

    assert found.sets == ()
    assert "has no size on the Hub" in found.unread[0].reason
    assert hub.downloads() == set()
    assert len(find_weight_sets("org/name").sets) == 1


def test_a_file_longer_than_its_declared_size_is_not_read_further(hub, monkeypatch):
    hub.add("org/name", {"model.safetensors": save({"a": np.zeros(10_000_000, np.float32)})}, lfs=True)
    monkeypatch.setattr(Blob, "sibling", lambda self, path, blobs: {"rfilename": path, "size": 1000})

    found = find_weight_sets("org/name", max_bytes=10**9)

    assert found == WeightSets((), (("model.safetensors", "longer than the size on the Hub: not read"),))


def test_more_sets_than_the_limit_are_not_even_fetched(hub):
    hub.add("org/name", {f"{n:02}.safetensors": save({"a": A}) for n in range(MAX_SETS + 1)})

    assert "33 sets" in refused(find_weight_sets, "org/name")
    assert served(hub) == set()


def test_paths_outside_the_repo_are_not_requested(hub):
    hub.add("org/name", {"model.safetensors": save({"a": A}), "../evil.safetensors": LARGE, "/x.bin": b"x"})

    assert opened(find_weight_sets("org/name")) == [["a"]]
    assert served(hub) == {"model.safetensors"}


def test_without_the_hub_what_is_cached_is_read_and_the_rest_is_named(hub):
    hub.add("org/name", {"model.safetensors": save({"a": A}), "large.safetensors": LARGE})
    find_weight_sets("org/name", max_bytes=300_000)
    hub.stop()

    found = find_weight_sets("org/name")

    assert opened(found) == [["a"]]
    assert [(name, "not in the local cache" in reason) for name, reason in found.unread] == [
        ("large.safetensors", True)
    ]
    assert "not in the local cache" in refused(find_weight_sets, "org/other")


@pytest.mark.parametrize("what", ["missing", "gated", "empty", "revision"])
def test_the_hubs_errors_are_those_of_a_download(hub, what):
    hub.add("org/gated", {"model.safetensors": LARGE}, gated=True)
    hub.add("org/empty", {"config.json": b"{}"})
    hub.add("org/revision", {"model.safetensors": LARGE})
    name = f"org/{what}" + ("@nowhere" if what == "revision" else "")

    assert refused(find_weight_sets, name) == refused(open_checkpoint, name)


def test_an_interrupted_download_is_one_sentence(hub):
    hub.add("org/name", {"model.safetensors": LARGE})
    hub.failing["/resolve/"] = 403  # after 500 the client would try for 20 seconds

    assert "org/name can't be fetched" in refused(find_weight_sets, "org/name")


def test_a_renamed_repo_has_its_current_name(hub):
    hub.add("org/new", {"model.safetensors": save({"a": A})})
    hub.moved["model", "org/old"] = "org/new"

    assert find_weight_sets("org/old").sets[0].name == "org/new"


def test_sets_whose_headers_would_take_too_long_together_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(opening_sets, "MAX_HEADERS", 150)
    for number in range(4):
        save_model(tmp_path / f"{number}.safetensors", a=A)

    found = find_weight_sets(tmp_path)

    assert shown(found, tmp_path) == [["0.safetensors"], ["1.safetensors"]]
    assert [(name, "choose it with --file" in reason) for name, reason in found.unread] == [
        ("2.safetensors", True),
        ("3.safetensors", True),
    ]
