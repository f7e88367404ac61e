import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_fingerprint.checkpoints import FolderContents, SkippedFile, list_contents, open_checkpoint, resolve
from hf_fingerprint.checkpoints.choosing import choose_weights, is_weight_file
from hf_fingerprint.checkpoints.kinds import UNMARKED
from hf_fingerprint.checkpoints.source import Source
from tests.helpers.checkpoint_files import names_of, open_folder, refused, save_model, save_shards, stranger


ONE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
TWO = {"b": np.ones(4, np.float16)}
SHARDS = {"model-00001-of-00002.safetensors": ONE, "model-00002-of-00002.safetensors": TWO}
INDEX = "model.safetensors.index.json"


def write_index(folder: Path, content: str | bytes) -> Path:
    (folder / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def point_index_to(folder: Path, *shards: object) -> Path:
    return write_index(folder, json.dumps({"weight_map": {f"tensor{i}": shard for i, shard in enumerate(shards)}}))


def test_a_folder_with_one_file_is_that_model(tmp_path):
    save_model(tmp_path / "model.safetensors", **ONE)

    assert resolve(tmp_path) == Source(
        name=str(tmp_path),
        folder=tmp_path,
        weights=(tmp_path / "model.safetensors",),
        index=None,
        revision=None,
        owns_folder=True,
    )


def test_a_single_file_is_a_model_without_its_folder(tmp_path):
    path = save_model(tmp_path / "some-name.safetensors", **ONE)
    (tmp_path / "private-notes.txt").write_text("not the model's")

    source = resolve(path)

    assert (source.name, source.weights, source.owns_folder) == (str(path), (path,), False)
    assert list_contents(source) == FolderContents()


def test_shards_come_in_the_order_of_their_names(tmp_path):
    save_shards(tmp_path, dict(reversed(SHARDS.items())))

    source = resolve(tmp_path)

    assert source.weights == tuple(tmp_path / name for name in SHARDS)
    assert source.index == tmp_path / INDEX
    assert source.owns_folder


def test_an_index_by_itself_is_its_shards_without_the_folder(tmp_path):
    save_shards(tmp_path, SHARDS)

    source = resolve(tmp_path / INDEX)

    assert source.weights == tuple(tmp_path / name for name in SHARDS)
    assert not source.owns_folder


def test_local_dir_spelling_means_the_folder(tmp_path):
    save_model(tmp_path / "model.safetensors", **ONE)

    assert resolve(f"local-dir:{tmp_path}") == resolve(tmp_path)


def test_a_relative_path_is_recorded_in_full(tmp_path, monkeypatch):
    save_model(tmp_path / "models" / "vit" / "model.safetensors", **ONE)
    monkeypatch.chdir(tmp_path)

    assert resolve("models/vit").name == str(tmp_path / "models" / "vit")
    assert resolve("./models/vit/model.safetensors").name == str(tmp_path / "models/vit/model.safetensors")
    assert resolve("models/../models/vit/").name == str(tmp_path / "models" / "vit")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["config.json", "model.safetensors"], "model.safetensors"),
        (["pytorch_model.bin", "model.safetensors", "tf_model.h5"], "model.safetensors"),
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["model.safetensors", INDEX, "model-00001-of-00001.safetensors"], "model.safetensors"),
        ([INDEX, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], INDEX),
        ([INDEX, "model-00001-of-00002.safetensors", "pytorch_model.bin"], INDEX),
        (["pytorch_model.bin", "weights.safetensors"], "weights.safetensors"),
        (["efficientnet.safetensors", "README.md"], "efficientnet.safetensors"),
        (["a-1.safetensors", "a-2.safetensors", "a.safetensors.index.json"], "a.safetensors.index.json"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (
            ["pytorch_model-1.bin", "pytorch_model-2.bin", "pytorch_model.bin.index.json"],
            "pytorch_model.bin.index.json",
        ),
        (["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"], "pytorch_model.bin"),
        (["model_best.pth", "args.yaml"], "model_best.pth"),
        (["last.pt"], "last.pt"),
        (["last.ckpt"], "last.ckpt"),
        (["adapter_model.safetensors", "model.safetensors"], "model.safetensors"),
    ],
)
def test_safetensors_come_before_pickles_and_standard_names_before_others(names, chosen):
    assert choose_weights(names, "here") == chosen
    assert choose_weights(reversed(names), "here") == chosen


@pytest.mark.parametrize(
    "names",
    [
        ["one.safetensors", "other.safetensors"],
        ["one.bin", "other.bin"],
        ["best.pth", "last.pth"],
        ["model.fp16.safetensors", "model.fp32.safetensors", "pytorch_model.bin"],
    ],
)
def test_ambiguous_weight_files_are_all_named(names):
    text = refused(choose_weights, names, "the/folder")

    assert "the/folder" in text
    assert all(name in text for name in names if name != "pytorch_model.bin")


def test_two_indexes_are_ambiguous_even_with_a_pickle():
    names = ["a.safetensors.index.json", "a-1.safetensors", "b.safetensors.index.json", "b-1.safetensors"]

    refused(choose_weights, [*names, "pytorch_model.bin"], "the/folder")


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["config.json", "README.md"],
        ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"],
        ["adapter_model.safetensors", "adapter_config.json"],
        ["tf_model.h5", "flax_model.msgpack", "model.onnx"],
    ],
)
def test_a_folder_without_a_models_weights_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"x")

    assert str(tmp_path) in refused(resolve, tmp_path)


def test_weights_in_a_subfolder_are_not_the_folders_own(tmp_path):
    save_model(tmp_path / "checkpoint-10" / "model.safetensors", **ONE)

    assert str(tmp_path) in refused(resolve, tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_named_like_weights_is_not_taken_for_them(tmp_path, name):
    (tmp_path / name).mkdir()

    assert str(tmp_path) in refused(resolve, tmp_path)


@pytest.mark.parametrize(
    "name", ["a/b/c", "no-such-model", "local-dir:no/such", "a\0b", "org/", "/no/such/folder", "@v1"]
)
def test_an_invalid_name_is_repeated_in_the_error(name):
    assert name.replace("\0", "\\x00") in refused(resolve, name)


@pytest.mark.parametrize("name", ["x" * 300, "o/" + "x" * 300, "local-dir:" + "y/" * 3000])
def test_a_name_longer_than_any_path_is_refused_like_any_other(name):
    refused(resolve, name)


@pytest.mark.parametrize("name", ["", "local-dir:"])
def test_an_empty_name_is_not_the_current_folder(name, tmp_path, monkeypatch):
    save_model(tmp_path / "model.safetensors", **ONE)
    monkeypatch.chdir(tmp_path)

    refused(resolve, name)


@pytest.mark.parametrize("name", ["config.json", "model.h5", "weights", "model.onnx", "model.safetensors.bak"])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")

    assert str(tmp_path / name) in refused(resolve, tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.SAFETENSORS",
        "x.pt",
        "x.pth",
        "x.ckpt",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "model.onnx_data",
        "model.tflite",
        "saved_model.pb",
        "w.npz",
        "w.npy",
        "model.gguf",
        "rust_model.ot",
        "w.pkl",
        "w.pickle",
        "m.mlmodel",
        "m.keras",
    ],
)
def test_every_common_form_of_weights_is_known_by_its_name(name):
    assert is_weight_file(name)


@pytest.mark.parametrize(
    "name",
    ["config.json", "README.md", ".gitattributes", "labels.txt", "preprocessor_config.json", "logo.png", "binary"],
)
def test_a_models_other_files_are_not_weights(name):
    assert not is_weight_file(name)


BAD_INDEXES = {
    "not JSON": "this is no index",
    "empty": "",
    "not UTF-8": b"\xff\xfe\xfa",
    "a list": "[]",
    "a string": '"weight_map"',
    "null": "null",
    "no weight_map": '{"metadata": {}}',
    "weight_map a list": '{"weight_map": ["model.safetensors"]}',
    "weight_map a string": '{"weight_map": "model.safetensors"}',
    "weight_map null": '{"weight_map": null}',
    "weight_map empty": '{"weight_map": {}}',
    "a shard that is a number": '{"weight_map": {"a": 7}}',
    "a shard that is null": '{"weight_map": {"a": null}}',
    "a shard that is a list": '{"weight_map": {"a": ["model.safetensors"]}}',
    "truncated": '{"weight_map": {"a": "model.safe',
    "nested without end": '{"weight_map":' + "[" * 200_000,
}


@pytest.mark.parametrize("content", BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
def test_an_invalid_index_is_refused_by_name(tmp_path, content):
    save_model(tmp_path / "m-1.safetensors", **ONE)

    assert INDEX in refused(resolve, write_index(tmp_path, content))


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "../../outside.safetensors",
        "/etc/outside.safetensors",
        "nested/outside.safetensors",
        "./outside.safetensors",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        "nested\\outside.safetensors",
        "a/../outside.safetensors",
    ],
)
def test_an_index_cannot_point_outside_its_folder(tmp_path, shard):
    folder = tmp_path / "model"
    for place in (tmp_path, folder / "nested", folder):
        save_model(place / "outside.safetensors", tensor0=np.ones(2, np.float32))

    text = refused(resolve, point_index_to(folder, shard))

    assert INDEX in text
    assert shard in text


@pytest.mark.parametrize("shard", ["", ".", "..", "config.json", INDEX, "/", "weights"])
def test_an_index_can_name_nothing_but_weight_files(tmp_path, shard):
    (tmp_path / "config.json").write_text("{}")

    assert INDEX in refused(resolve, point_index_to(tmp_path, shard))


@pytest.mark.parametrize("shard", ["gone.safetensors", "..safetensors"])
def test_a_shard_that_is_missing_is_named(tmp_path, shard):
    save_model(tmp_path / "here.safetensors", tensor0=np.ones(1, np.float32))

    assert shard in refused(resolve, point_index_to(tmp_path, "here.safetensors", shard))


def test_a_shard_with_a_name_longer_than_any_path_is_refused(tmp_path):
    refused(resolve, point_index_to(tmp_path, "x" * 300 + ".safetensors"))


@pytest.mark.parametrize("shard", ["gone\nAll is well.\n.safetensors", "gone\x1b[2J\x1b[HAll is well.safetensors"])
def test_a_shards_name_can_neither_break_the_line_of_the_refusal_nor_steer_the_terminal(tmp_path, shard):
    assert refused(resolve, point_index_to(tmp_path, shard)).isprintable()


@pytest.mark.parametrize("link", ["model.safetensors", "config.json", "sub/labels.txt"])
def test_a_link_to_outside_the_folder_is_refused_by_name(tmp_path, link):
    outside = save_model(tmp_path / "secret.safetensors", **ONE)
    folder = tmp_path / "model"
    save_model(folder / "model.safetensors", **ONE)
    (folder / link).unlink(missing_ok=True)
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(outside)

    assert str(folder / link) in refused(lambda: list_contents(resolve(folder)))


def test_a_shard_that_is_a_link_to_outside_is_refused_by_name(tmp_path):
    outside = save_model(tmp_path / "secret.safetensors", **ONE)
    folder = save_shards(tmp_path / "model", SHARDS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").symlink_to(outside)

    assert "model-00002-of-00002.safetensors" in refused(resolve, folder)


def test_an_index_that_is_a_link_to_outside_is_refused_by_name(tmp_path):
    elsewhere = save_shards(tmp_path / "elsewhere", SHARDS)
    folder = save_shards(tmp_path / "model", SHARDS)
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to(elsewhere / INDEX)

    assert INDEX in refused(resolve, folder)


def test_a_link_to_a_folder_with_the_same_prefix_is_outside(tmp_path):
    outside = save_model(tmp_path / "model-secret" / "model.safetensors", **ONE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(outside)

    assert "model.safetensors" in refused(resolve, tmp_path / "model")


def test_links_within_the_folder_are_fine(tmp_path):
    save_model(tmp_path / "store" / "blob.dat", **ONE)
    (tmp_path / "model.safetensors").symlink_to("store/blob.dat")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "labels.json").symlink_to(tmp_path / "config.json")

    source = resolve(tmp_path)

    with open_checkpoint(source) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    assert [each.path for each in list_contents(source).included] == [
        tmp_path / "config.json",
        tmp_path / "labels.json",
    ]


def test_the_folder_itself_may_be_a_link(tmp_path):
    save_model(tmp_path / "v2" / "model.safetensors", **ONE)
    (tmp_path / "current").symlink_to("v2")

    assert resolve(tmp_path / "current").weights[0].resolve() == tmp_path / "v2" / "model.safetensors"


def hub_cache(root: Path) -> Path:
    """The layout of the Hub client's cache: a snapshot of links into blobs."""
    snapshot = root / "models--org--name" / "snapshots" / ("0" * 40)
    (snapshot / "sub").mkdir(parents=True)
    save_model(root / "models--org--name" / "blobs" / "aaaa", **ONE)
    (root / "models--org--name" / "blobs" / "bbbb").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    (snapshot / "config.json").symlink_to("../../blobs/bbbb")
    (snapshot / "sub" / "labels.json").symlink_to("../../../blobs/bbbb")
    return snapshot


def test_a_snapshot_in_the_hub_clients_cache_is_a_folder_like_any(tmp_path):
    snapshot = hub_cache(tmp_path)

    source = resolve(snapshot)

    assert source.weights == (snapshot / "model.safetensors",)
    assert [each.path for each in list_contents(source).included] == [
        snapshot / "config.json",
        snapshot / "sub" / "labels.json",
    ]
    assert list_contents(source).left_out == ()


def test_a_snapshot_may_point_to_its_own_blobs_and_no_further(tmp_path):
    snapshot = hub_cache(tmp_path)
    (tmp_path / "models--org--other" / "blobs").mkdir(parents=True)
    (tmp_path / "models--org--other" / "blobs" / "cccc").write_text("{}")
    (snapshot / "stolen.json").symlink_to("../../../models--org--other/blobs/cccc")

    assert "stolen.json" in refused(list_contents, resolve(snapshot))


def test_blobs_that_are_themselves_a_link_away_are_outside(tmp_path):
    snapshot = hub_cache(tmp_path)
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")

    assert "model.safetensors" in refused(resolve, snapshot)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    save_model(tmp_path / "model.safetensors", **ONE)
    (tmp_path / "config.json").symlink_to("gone.json")

    assert "config.json" in refused(list_contents, resolve(tmp_path))


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")

    assert "model.safetensors" in refused(resolve, tmp_path)


@pytest.mark.parametrize("target", ["/etc", "sub", "."])
def test_a_folder_that_is_a_link_is_refused_by_name(tmp_path, target):
    save_model(tmp_path / "model.safetensors", **ONE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "assets").symlink_to(target, target_is_directory=True)

    assert "assets" in refused(list_contents, resolve(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sub/labels.txt"])
def test_a_pipe_in_the_folder_is_refused_by_name_and_not_waited_for(tmp_path, name):
    save_model(tmp_path / "model.safetensors", **ONE)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)

    assert name in refused(lambda: list_contents(resolve(tmp_path)))


def test_a_pipe_given_as_the_model_is_refused_and_not_waited_for(tmp_path):
    pipes = [tmp_path / "pipe.safetensors", tmp_path / "pipe.bin"]
    for pipe in pipes:
        os.mkfifo(pipe)
    program = (
        "import sys; from hf_fingerprint.checkpoints import open_checkpoint\n"
        "for name in sys.argv[1:]:\n"
        "    try: open_checkpoint(name)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", program, *map(str, pipes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)

    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"CheckpointError {pipe}") for line, pipe in zip(lines, pipes, strict=True))


def test_a_folder_that_may_not_be_read_is_named():
    with open_folder() as folder:
        save_model(folder / "model" / "model.safetensors", **ONE)
        (folder / "model").chmod(0)
        with stranger():
            assert "model" in refused(resolve, folder / "model")
        (folder / "model").chmod(0o700)


def test_a_path_behind_a_closed_folder_is_refused_and_not_looked_up_on_the_hub():
    with open_folder() as folder:
        save_model(folder / "closed" / "model" / "model.safetensors", **ONE)
        (folder / "closed").chmod(0)
        with stranger():
            assert "closed/model" in refused(resolve, folder / "closed" / "model")
        (folder / "closed").chmod(0o700)


def test_git_and_cache_folders_are_not_files_of_the_model(tmp_path):
    save_model(tmp_path / "model.safetensors", **ONE)
    for hidden in (".git/objects/aa/bbbb", ".git/lfs/objects/x.safetensors", ".cache/huggingface/download/x.lock"):
        (tmp_path / hidden).parent.mkdir(parents=True)
        (tmp_path / hidden).write_bytes(b"x")
    (tmp_path / ".gitattributes").write_text("*.bin lfs\n")

    found = list_contents(resolve(tmp_path))

    assert [each.name for each in found.included] == [".gitattributes"]
    assert names_of(found.left_out) == [".cache/", ".git/"]


def test_weights_in_other_formats_are_distinguished_from_files_to_copy(tmp_path):
    save_model(tmp_path / "model.safetensors", **ONE)
    copied = ["README.md", "config.json", "onnx/config.json", "sub/deep/er/labels.txt"]
    unmarked = ["onnx/model.onnx", "pytorch_model.bin", "stale.safetensors.index.json", "tf_model.h5"]
    for name in [*copied, *unmarked, "checkpoint-10/model.safetensors", "training_args.bin"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")

    found = list_contents(resolve(tmp_path))

    assert [each.name for each in found.included] == copied
    assert names_of(found.left_out) == sorted([*unmarked, "checkpoint-10/", "training_args.bin"])


def test_links_to_weights_elsewhere_are_left_out_and_not_followed(tmp_path):
    outside = save_model(tmp_path / "outside.safetensors", **ONE)
    save_model(tmp_path / "model" / "model.safetensors", **ONE)
    (tmp_path / "model" / "old.safetensors").symlink_to(outside)

    assert list_contents(resolve(tmp_path / "model")) == FolderContents(
        (), (SkippedFile("old.safetensors", UNMARKED),)
    )
