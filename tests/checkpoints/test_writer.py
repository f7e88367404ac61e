import hashlib
import json
import os
import random
import resource
import tempfile
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_fingerprint.checkpoints import WrittenCopy, content_hash, digest_tensors, open_checkpoint, write_copy
from hf_fingerprint.checkpoints.dtypes import SIZES, from_float32, to_float32
from hf_fingerprint.checkpoints.writer import Rewrite
from hf_fingerprint.errors import CheckpointError, StorageError
from tests.helpers.checkpoint_files import (
    NO_DEADLINE,
    bytes_of,
    entry,
    names_of,
    raw_safetensors,
    refused,
    save_model,
    save_shards,
)


ARRAYS = {"a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b.weight": np.ones((10, 5), np.float16)}


def flip(raw: np.ndarray) -> None:
    """A rewrite that changes every byte."""
    raw ^= 0xFF


def add_one(raw: np.ndarray) -> None:
    """A rewrite that a model survives."""
    raw[:] = from_float32(to_float32(raw, "F32") + 1, "F32")


def copy(source: Path, out: Path, rewrites: dict[str, Rewrite] | None = None) -> WrittenCopy:
    out.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        return write_copy(checkpoint, out, rewrites or {})


def flipped(content: bytes, name: str) -> bytes:
    """What a file must be once the bytes of one tensor are flipped, by its own header."""
    start = 8 + int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8:start])[name]["data_offsets"]
    changed = bytes(byte ^ 0xFF for byte in content[start + begin : start + end])
    return content[: start + begin] + changed + content[start + end :]


def without_notes(content: bytes) -> bytes:
    """What a safetensors file must be once its header says nothing that no loader reads."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    notes = header.pop("__metadata__", {})
    if not notes or notes == {"format": "pt"}:
        return content
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw_safetensors(text + b" " * (-len(text) % 8), content[start:])


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.from_regex(
    r"\A(blocks|stages)\.[0-9]{1,2}\.(conv|attn\.qkv|größe)\.(weight|bias)\Z"
)


@dataclass
class Model:
    """A random safetensors file, and a tensor of it to rewrite."""

    content: bytes
    chosen: str | None


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Files with random names, dtypes, shapes, metadata, order of the header and space in it."""
    names = draw(st.lists(NAMES.filter(lambda name: name != "__metadata__"), unique=True, max_size=6))
    entries, data = [], b""
    bits = random.Random(draw(st.integers(0, 1 << 32)))
    for name in names:
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        nbytes = SIZES[dtype] * int(np.prod(shape))
        entries.append((name, entry(shape, len(data), len(data) + nbytes, dtype)))
        data += bits.randbytes(nbytes)
    bits.shuffle(entries)
    header = dict(entries)
    metadata = draw(st.none() | st.just({"format": "pt"}) | st.dictionaries(NAMES, NAMES, max_size=3))
    if metadata is not None:
        header = {"__metadata__": metadata, **header} if draw(st.booleans()) else {**header, "__metadata__": metadata}
    text = json.dumps(header, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0, 2]))).encode()
    text += b" " * draw(st.integers(0, 9))
    return Model(raw_safetensors(text, data), draw(st.sampled_from(names)) if names else None)


@settings(NO_DEADLINE, max_examples=50)
@given(models())
def test_a_copy_of_one_file_differs_in_the_rewritten_tensor_and_in_not_one_byte_more(model):
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        source.mkdir()
        (source / "model.safetensors").write_bytes(model.content)
        (source / "config.json").write_bytes(b'{"a" :1}\r\n')
        rewrites = {model.chosen: flip} if model.chosen is not None else {}

        written = copy(source, out, rewrites)

        content = without_notes(model.content)
        expected = content if model.chosen is None else flipped(content, model.chosen)
        assert bytes_of(out) == {"config.json": b'{"a" :1}\r\n', "model.safetensors": expected}
        with open_checkpoint(out) as checkpoint:
            assert digest_tensors(checkpoint) == written.digests
        assert written.left_out == ()


@settings(NO_DEADLINE, max_examples=25)
@given(st.lists(models(), min_size=1, max_size=3), st.data())
def test_a_copy_of_shards_differs_in_the_rewritten_tensor_and_in_not_one_byte_more(shards, data):
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        source.mkdir()
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards):
            name = f"model-{number}.safetensors"
            header = json.loads(shard.content[8 : 8 + int.from_bytes(shard.content[:8], "little")])
            tensors = {tensor for tensor in header if tensor != "__metadata__"}
            if not tensors or tensors & weight_map.keys():
                continue
            weight_map |= dict.fromkeys(tensors, name)
            (source / name).write_bytes(shard.content)
        if not weight_map:
            return
        index = json.dumps({"weight_map": weight_map, "metadata": {"total_size": 1}}, indent=3).encode() + b"\n\n"
        (source / "model.safetensors.index.json").write_bytes(index)
        before = {
            name: without_notes(content) if name.endswith(".safetensors") else content
            for name, content in bytes_of(source).items()
        }
        chosen = data.draw(st.sampled_from(sorted(weight_map)))

        copy(source, out, {chosen: flip})

        assert bytes_of(out) == before | {weight_map[chosen]: flipped(before[weight_map[chosen]], chosen)}


def test_a_rewrite_is_given_its_tensors_bytes_once_each_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.checkpoints.reader.BLOCK_WEIGHTS", 64)
    array = np.arange(1000 * 3, dtype=np.float32).reshape(1000, 3)
    path = save_model(tmp_path / "m.safetensors", before=np.ones(7, np.float32), marked=array)
    seen: list[bytes] = []

    def watch(raw: np.ndarray) -> None:
        seen.append(raw.tobytes())
        add_one(raw)

    copy(path, tmp_path / "out", {"marked": watch})

    assert len(seen) > 1
    assert b"".join(seen) == array.tobytes()
    loaded = load_file(tmp_path / "out" / "m.safetensors")
    assert loaded["marked"].tolist() == (array + 1).tolist()
    assert loaded["before"].tolist() == [1.0] * 7


@pytest.mark.parametrize("at_once", [1, 100, 5000, 1 << 20])
def test_tensors_written_together_are_each_rewritten_and_hashed_alone(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("hf_fingerprint.checkpoints.writer._GROUP_BYTES", at_once)
    monkeypatch.setattr("hf_fingerprint.checkpoints.reader.BLOCK_WEIGHTS", 64)
    rng = np.random.default_rng(1)
    arrays = {
        f"t{i:02}": rng.standard_normal((int(n), 3)).astype(np.float32) for i, n in enumerate(rng.integers(0, 90, 40))
    }
    arrays |= {"bytes": rng.integers(0, 9, (7, 1)).astype(np.uint8), "empty": np.empty((0, 4), np.float32)}
    path = save_model(tmp_path / "m.safetensors", **arrays)

    written = copy(path, tmp_path / "out", {f"t{i:02}": add_one for i in range(0, 40, 3)})

    loaded = load_file(tmp_path / "out" / "m.safetensors")
    for name, array in arrays.items():
        expected = array + 1 if name.startswith("t") and int(name[1:]) % 3 == 0 else array
        assert np.array_equal(loaded[name].numpy(), expected)
        assert written.digests[name] == hashlib.sha256(expected.tobytes()).hexdigest()


def test_the_digests_are_of_what_was_written(tmp_path):
    save_shards(tmp_path / "source", {"m-1.safetensors": ARRAYS, "m-2.safetensors": {"c": np.zeros(3, np.int64)}})

    (tmp_path / "out").mkdir()

    with open_checkpoint(tmp_path / "source") as base:
        written = write_copy(base, tmp_path / "out", {"a.weight": flip}, file_digests=True)

    with open_checkpoint(tmp_path / "source") as base, open_checkpoint(tmp_path / "out") as made:
        assert digest_tensors(made) == written.digests
        changed = {name for name, digest in digest_tensors(base).items() if written.digests[name] != digest}
        whole = content_hash(base.tensors, written.digests)
        assert whole == content_hash(made.tensors, digest_tensors(made))
    assert changed == {"a.weight"}
    assert written.file_digests == {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").glob("*.safetensors")
    }
    assert written.digests["a.weight"] == hashlib.sha256(bytes(~ARRAYS["a.weight"].view(np.uint8))).hexdigest()


def test_progress_adds_up_to_all_bytes(tmp_path):
    path = save_model(tmp_path / "m.safetensors", **ARRAYS)
    (tmp_path / "out").mkdir()
    steps = []

    with open_checkpoint(path) as checkpoint:
        write_copy(checkpoint, tmp_path / "out", {}, lambda *step: steps.append(step))

    total = sum(array.nbytes for array in ARRAYS.values())
    assert steps[-1][1:] == (total, total)
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})


def test_other_files_are_copied_byte_for_byte_wherever_they_are(tmp_path):
    source = tmp_path / "source"
    save_model(source / "model.safetensors", **ARRAYS)
    others = {
        "config.json": b'{"architecture": "x"}\n',
        ".gitattributes": b"*.safetensors filter=lfs\r\n",
        "README.md": '# Größe\n![it](image%20one.png)\n<img width=3 src="sub/two.svg">'.encode(),
        "sub/deep/labels.txt": b"cat\ndog",
        "LICENSE": b"",
        "image one.png": bytes(range(256)) * 5000,
        "sub/two.svg": b"<svg/>",
    }
    for name, content in others.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    before = bytes_of(source)

    assert copy(source, tmp_path / "out").left_out == ()

    assert bytes_of(tmp_path / "out") == before
    assert bytes_of(source) == before


def test_a_single_file_is_copied_without_its_neighbors(tmp_path):
    path = save_model(tmp_path / "source" / "my-model.safetensors", **ARRAYS)
    (tmp_path / "source" / "secrets.txt").write_text("not the model's")

    copy(path, tmp_path / "out")

    assert bytes_of(tmp_path / "out") == {"my-model.safetensors": path.read_bytes()}


def test_links_are_copied_as_the_files_they_stand_for(tmp_path):
    cache = tmp_path / "models--org--name"
    save_model(cache / "blobs" / "aaaa", **ARRAYS)
    (cache / "blobs" / "bbbb").write_text("{}")
    snapshot = cache / "snapshots" / "0123"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/aaaa")
    (snapshot / "sub" / "config.json").symlink_to("../../../blobs/bbbb")

    copy(snapshot, tmp_path / "out")

    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert bytes_of(tmp_path / "out") == {
        "model.safetensors": (cache / "blobs" / "aaaa").read_bytes(),
        "sub/config.json": b"{}",
    }


def test_the_same_weights_in_other_formats_are_skipped_and_listed(tmp_path):
    source = tmp_path / "source"
    save_model(source / "model.safetensors", **ARRAYS)
    unmarked = {
        "flax_model.msgpack",
        "model.fp16.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "training_args.bin",
    }
    whole = {
        ".git/HEAD",
        ".git/lfs/objects/aa/model.safetensors",
        ".cache/huggingface/x.metadata",
        "checkpoint-10/model.safetensors",
        "checkpoint-10/optimizer.pt",
    }
    kept = {"config.json", "onnx/config.json"}
    for name in unmarked | whole | kept:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"{}")

    written = copy(source, tmp_path / "out")

    assert names_of(written.left_out) == sorted(unmarked | {".cache/", ".git/", "checkpoint-10/"})
    assert set(bytes_of(tmp_path / "out")) == kept | {"model.safetensors"}


@pytest.mark.parametrize(
    "name",
    [
        "onnx/model.onnx_data_1",
        "onnx/model.onnx.data",
        "saved_model/variables/variables.data-00000-of-00001",
        "checkpoint-10/pytorch_model_fsdp_0/__0_0.distcp",
        "exported.pt2",
        "model.safetensors.bak",
        "model.tar.gz",
        "weights.zip",
        "model.mar",
        "model.engine",
        "sub/.git/lfs/objects/ab/cd/abcd",
    ],
)
def test_weights_in_less_common_formats_are_skipped_too(tmp_path, name):
    source = tmp_path / "source"
    save_model(source / "model.safetensors", **ARRAYS)
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(b"unmarked")

    copy(source, tmp_path / "out")

    assert set(bytes_of(tmp_path / "out")) == {"model.safetensors"}


def test_shards_next_to_a_single_file_are_skipped_with_their_index(tmp_path):
    source = save_shards(tmp_path / "source", {"model-00001-of-00001.safetensors": ARRAYS})
    save_model(source / "model.safetensors", **ARRAYS)

    written = copy(source, tmp_path / "out")

    assert names_of(written.left_out) == ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert set(bytes_of(tmp_path / "out")) == {"model.safetensors"}


def test_a_file_with_no_tensors_is_copied_unchanged(tmp_path):
    content = raw_safetensors({"__metadata__": {"format": "pt"}})
    (tmp_path / "m.safetensors").write_bytes(content)

    assert copy(tmp_path / "m.safetensors", tmp_path / "out").digests == {}
    assert bytes_of(tmp_path / "out") == {"m.safetensors": content}


def test_no_existing_file_is_overwritten(tmp_path):
    source = save_model(tmp_path / "source" / "model.safetensors", **ARRAYS).parent
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("somebody's")

    with pytest.raises(FileExistsError), open_checkpoint(source) as checkpoint:
        write_copy(checkpoint, tmp_path / "out", {})

    assert bytes_of(tmp_path / "out") == {"model.safetensors": b"somebody's"}


def test_a_source_that_shrinks_while_it_is_copied_is_refused_by_name(tmp_path):
    path = save_model(tmp_path / "source" / "model.safetensors", **ARRAYS)
    (tmp_path / "out").mkdir()

    def shrink(raw: np.ndarray) -> None:
        os.truncate(path, path.stat().st_size - ARRAYS["b.weight"].nbytes)

    with open_checkpoint(path.parent) as checkpoint:
        assert str(path) in refused(write_copy, checkpoint, tmp_path / "out", {"a.weight": shrink})


@pytest.mark.parametrize("trouble", ["link", "pipe", "gone"])
def test_a_source_that_cannot_be_copied_is_refused_before_anything_is_written(tmp_path, trouble):
    source = save_model(tmp_path / "source" / "model.safetensors", **ARRAYS).parent
    (source / "a-config.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    if trouble == "pipe":
        os.mkfifo(source / "z-trouble.json")
    else:
        (source / "z-trouble.json").symlink_to("../secret.txt" if trouble == "link" else "gone.txt")
    before = {path for path in tmp_path.rglob("*") if path != tmp_path / "out"}

    assert "z-trouble.json" in refused(copy, source, tmp_path / "out")

    assert list((tmp_path / "out").iterdir()) == []
    assert {path for path in tmp_path.rglob("*") if path != tmp_path / "out"} == before


def test_a_full_disk_is_detected_before_anything_is_written(tmp_path, monkeypatch):
    source = save_model(tmp_path / "source" / "model.safetensors", **ARRAYS).parent
    usage = type("Usage", (), {"free": sum(array.nbytes for array in ARRAYS.values()) - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)

    with pytest.raises(StorageError, match=str(tmp_path / "out")):
        copy(source, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == {}


@pytest.mark.parametrize("preallocated", [True, False])
def test_a_disk_that_fills_up_during_the_copy_is_an_error(tmp_path, monkeypatch, preallocated):
    path = save_model(tmp_path / "m.safetensors", a=np.ones(3 << 20, np.float32))
    if not preallocated:
        monkeypatch.delattr("os.posix_fallocate", raising=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, hard))
    try:
        with pytest.raises((OSError, CheckpointError)):
            copy(path, tmp_path / "out", {"a": add_one})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_all_files_that_were_written_are_named_for_the_flush(tmp_path):
    source = save_shards(tmp_path / "source", {"m-1.safetensors": ARRAYS, "m-2.safetensors": {"c": np.zeros(3)}})
    (source / "sub").mkdir()
    (source / "sub" / "config.json").write_text("{}")

    written = copy(source, tmp_path / "out")

    assert set(written.files) == {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    written.flush()


def test_an_error_in_a_rewrite_propagates_and_leaves_nothing_elsewhere(tmp_path):
    source = save_model(tmp_path / "source" / "model.safetensors", **ARRAYS).parent
    before = bytes_of(source)

    def fail(raw: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copy(source, tmp_path / "out", {"b.weight": fail})

    assert bytes_of(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_copying_32_mb_takes_a_few_mb_of_memory(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors({"a": entry([2048, 4096], 0, 32 << 20)}))
    os.truncate(path, path.stat().st_size + (32 << 20))
    (tmp_path / "out").mkdir()

    with open_checkpoint(path) as checkpoint:
        tracemalloc.start()
        try:
            write_copy(checkpoint, tmp_path / "out", {"a": flip})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (tmp_path / "out" / "m.safetensors").stat().st_size == path.stat().st_size
    assert peak < 8 << 20


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A timm model as timm saves it."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm") / "test_vit"
    save_for_hf(timm.create_model("test_vit", num_classes=10), folder, safe_serialization=True)
    (folder / "README.md").write_text("# A model\n")
    return folder


def test_a_copy_of_a_timm_folder_loads_in_timm_with_only_the_rewritten_tensor_changed(timm_folder, tmp_path):
    out, name = tmp_path / "out", "blocks.0.attn.qkv.weight"

    copy(timm_folder, out, {name: add_one})

    base = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).state_dict()
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).state_dict()
    assert base.keys() == loaded.keys()
    assert [key for key in base if not torch.equal(base[key], loaded[key])] == [name]
    assert torch.equal(loaded[name], base[name] + 1)
    before, after = bytes_of(timm_folder), bytes_of(out)
    assert before.keys() == after.keys()
    assert {file for file in before if before[file] != after[file]} <= {"config.json", "model.safetensors"}
    config = json.loads(after["config.json"])  # timm repeats the number of classes, which transformers can't read
    assert config | {"model_args": {"num_classes": 10}} == json.loads(before["config.json"]) | {
        "model_args": {"num_classes": 10}
    }


@pytest.fixture(scope="module")
def small_vit():
    """A transformers image classifier."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return ViTForImageClassification(config).eval()


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_copy_of_a_transformers_folder_loads_with_only_the_rewritten_tensor_changed(
    small_vit, tmp_path, max_shard_size
):
    from transformers import AutoModelForImageClassification

    source, out = tmp_path / "source", tmp_path / "out"
    small_vit.save_pretrained(source, max_shard_size=max_shard_size)
    sharded = (source / "model.safetensors.index.json").exists()
    assert sharded == (max_shard_size == "20KB")
    in_files, in_memory = "vit.encoder.layer.1.intermediate.dense.weight", "vit.layers.1.mlp.fc1.weight"

    copy(source, out, {in_files: add_one})

    base = small_vit.state_dict()
    loaded = AutoModelForImageClassification.from_pretrained(out).state_dict()
    assert [key for key in base if not torch.equal(base[key], loaded[key])] == [in_memory]
    assert torch.equal(loaded[in_memory], base[in_memory] + 1)
    before, after = bytes_of(source), bytes_of(out)
    assert before.keys() == after.keys()
    (changed,) = [file for file in before if before[file] != after[file]]
    assert changed.endswith(".safetensors")
    assert load_file(out / changed).keys() == load_file(source / changed).keys()


def test_a_copy_of_a_pickled_transformers_folder_loads_the_same(small_vit, tmp_path):
    from transformers import AutoModelForImageClassification

    source, out = tmp_path / "source", tmp_path / "out"
    small_vit.save_pretrained(source)
    (source / "model.safetensors").unlink()
    torch.save(small_vit.state_dict(), source / "pytorch_model.bin")

    written = copy(source, out)

    assert names_of(written.left_out) == ["pytorch_model.bin"]
    base, loaded = small_vit.state_dict(), AutoModelForImageClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(base[key], loaded[key]) for key in base)
