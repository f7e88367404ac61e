import hashlib
import json
import os
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.checkpoints import TensorInfo, content_hash, digest_tensors, open_checkpoint, resolve
from tests.helpers.checkpoint_files import NO_DEADLINE, entry, raw_safetensors, refused, save_model, save_shards


ARRAYS = {
    "stem.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "stem.größe": np.array(7, np.int64),
    "head.weight": np.linspace(-1, 1, 50, dtype=np.float16).reshape(10, 5),
    "head.bias": np.zeros((0, 4), np.float64),
}
SHARDS = {
    "m-1.safetensors": {name: ARRAYS[name] for name in ("head.bias", "stem.weight")},
    "m-2.safetensors": {name: ARRAYS[name] for name in ("stem.größe", "head.weight")},
}
INFO = TensorInfo("a.weight", "F32", (2, 3), 0, 100, 24)


def whole_hash(name: Path) -> str:
    with open_checkpoint(name) as checkpoint:
        return content_hash(checkpoint.tensors, digest_tensors(checkpoint))


def open_descriptors() -> set[str]:
    return {str(path.resolve()) for path in Path("/proc/self/fd").iterdir()}


def test_every_tensor_of_every_shard_is_read_as_it_was_saved(tmp_path):
    save_shards(tmp_path, SHARDS)

    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(ARRAYS)
        for name, info in checkpoint.tensors.items():
            assert checkpoint.read(info).tobytes() == ARRAYS[name].tobytes()
            assert info.shape == ARRAYS[name].shape
        assert {checkpoint.tensors[name].file for name in SHARDS["m-2.safetensors"]} == {1}


def test_a_source_is_opened_without_being_looked_up_again(tmp_path, monkeypatch):
    save_model(tmp_path / "model.safetensors", **ARRAYS)
    source = resolve(tmp_path)
    monkeypatch.chdir("/")

    with open_checkpoint(replace(source, name="org/name")) as checkpoint:
        assert checkpoint.source.name == "org/name"
        assert set(checkpoint.tensors) == set(ARRAYS)


def test_a_part_of_a_tensor_is_that_part(tmp_path):
    values = np.arange(200, dtype=np.uint8)
    path = save_model(tmp_path / "m.safetensors", a=values[:100], b=values[100:])

    with open_checkpoint(path) as checkpoint:
        out = np.full(50, 255, np.uint8)
        found = checkpoint.read(checkpoint.tensors["b"], 10, 20, out)
        assert found.tolist() == list(range(110, 120))
        assert out.tolist() == list(range(110, 120)) + [255] * 40
        assert checkpoint.read(checkpoint.tensors["b"], 95).tolist() == list(range(195, 200))
        assert checkpoint.read(checkpoint.tensors["a"], 7, 7).size == 0


@NO_DEADLINE
@given(
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    dtype=st.sampled_from([np.float64, np.float32, np.float16, np.uint8]),
    block=st.sampled_from([1, 64, 100, 4096]),
)
def test_blocks_are_whole_rows_in_order_and_multiples_of_eight_but_for_the_last(tmp_path_factory, shape, dtype, block):
    array = np.random.default_rng(0).integers(0, 256, int(np.prod(shape)) * np.dtype(dtype).itemsize).astype(np.uint8)
    folder = tmp_path_factory.mktemp("blocks")
    path = save_model(folder / "m.safetensors", before=np.ones(3, np.uint8), a=array.view(dtype).reshape(shape))

    with pytest.MonkeyPatch.context() as patch, open_checkpoint(path) as checkpoint:
        patch.setattr("hf_fingerprint.checkpoints.reader.BLOCK_WEIGHTS", block)
        info = checkpoint.tensors["a"]
        blocks = [(rows, raw.tobytes()) for rows, raw in checkpoint.blocks(info)]

    assert b"".join(raw for _, raw in blocks) == array.tobytes()
    at = 0
    for rows, raw in blocks:
        assert (rows.start, rows.step) == (at, None)
        assert len(raw) == (rows.stop - rows.start) * info.row_bytes
        at = rows.stop
    assert at == (info.rows if info.nbytes else 0)
    assert all((rows.stop - rows.start) % 8 == 0 for rows, _ in blocks[:-1])
    if info.columns and block // info.columns >= 8:
        assert all((rows.stop - rows.start) * info.columns <= block for rows, _ in blocks)


def sparse_model(path: Path, shape: list[int]) -> Path:
    """A model of one F32 tensor of zeros that takes up no room on the disk."""
    nbytes = 4 * int(np.prod(shape))
    path.write_bytes(raw_safetensors({"a": entry(shape, 0, nbytes)}))
    os.truncate(path, path.stat().st_size + nbytes)
    return path


@pytest.mark.parametrize("shape", [[4096, 4096], [16_777_216], [1000, 16_000], [512, 512, 8, 8]])
def test_a_tensor_of_64_mb_is_read_in_a_few_mb(tmp_path, shape):
    path = sparse_model(tmp_path / "m.safetensors", shape)

    with open_checkpoint(path) as checkpoint:
        tracemalloc.start()
        try:
            total = sum(len(raw) for _, raw in checkpoint.blocks(checkpoint.tensors["a"]))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert total == 4 * np.prod(shape)
    assert peak < 3 << 20


def test_a_file_that_shrinks_while_open_is_noticed_and_named(tmp_path):
    path = save_model(tmp_path / "m.safetensors", a=np.ones(1000, np.float32))

    with open_checkpoint(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 1)
        text = refused(digest_tensors, checkpoint)

    assert str(path) in text


def test_a_file_that_is_replaced_while_open_is_still_read_as_it_was(tmp_path):
    path = save_model(tmp_path / "m.safetensors", a=np.ones(1000, np.float32))

    with open_checkpoint(path) as checkpoint:
        save_model(tmp_path / "new.safetensors", a=np.zeros(10, np.float32)).replace(path)
        assert set(checkpoint.read(checkpoint.tensors["a"]).view(np.float32)) == {1.0}


@pytest.mark.parametrize("change", ["content", "size", "replaced"])
def test_the_state_tells_that_a_weight_file_was_changed(tmp_path, change):
    save_shards(tmp_path, SHARDS)
    path = tmp_path / "m-2.safetensors"
    old = path.stat()

    with open_checkpoint(tmp_path) as checkpoint:
        before = checkpoint.state()
        assert checkpoint.state() == before
        if change == "content":
            path.write_bytes(path.read_bytes()[:-1] + b"\x55")
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
        elif change == "size":
            path.write_bytes(path.read_bytes() + b"\0")
            os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        else:
            (tmp_path / "other").write_bytes(path.read_bytes())
            (tmp_path / "other").replace(path)
        assert checkpoint.state() != before


def test_closing_leaves_no_file_open_and_may_be_done_twice(tmp_path):
    save_shards(tmp_path, SHARDS)

    checkpoint = open_checkpoint(tmp_path)
    assert str(tmp_path / "m-1.safetensors") in open_descriptors()
    checkpoint.close()
    checkpoint.close()

    assert not [path for path in open_descriptors() if path.startswith(str(tmp_path))]


def test_an_error_in_the_with_block_closes_the_files_too(tmp_path):
    path = save_model(tmp_path / "m.safetensors", **ARRAYS)

    with pytest.raises(ZeroDivisionError), open_checkpoint(path):
        1 / 0

    assert str(path) not in open_descriptors()


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"gone": "m-1.safetensors"}, ["gone", "m-1.safetensors"]),
        ({"stem.weight": "m-2.safetensors", "stem.größe": "m-2.safetensors"}, ["stem.weight", "m-2.safetensors"]),
        ({"stem.weight": "m-1.safetensors", "head.weight": "m-2.safetensors", "x": "m-2.safetensors"}, ["x"]),
    ],
)
def test_an_index_that_places_a_tensor_where_it_is_not_is_refused(tmp_path, weight_map, named):
    save_shards(tmp_path, SHARDS, **weight_map)

    text = refused(open_checkpoint, tmp_path)

    assert "model.safetensors.index.json" in text
    assert all(name in text for name in named)
    assert not [path for path in open_descriptors() if path.startswith(str(tmp_path))]


def test_the_same_tensor_in_two_shards_is_refused_by_name(tmp_path):
    again = {"m-1.safetensors": ARRAYS, "m-2.safetensors": {"stem.weight": ARRAYS["stem.weight"]}}
    save_shards(tmp_path, again)

    assert "stem.weight" in refused(open_checkpoint, tmp_path)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_damaged_shard_is_named(tmp_path, shard):
    save_shards(tmp_path, SHARDS)
    os.truncate(tmp_path / shard, (tmp_path / shard).stat().st_size - 1)

    assert shard in refused(open_checkpoint, tmp_path)


def test_the_golden_content_hash():
    digest = hashlib.sha256(bytes(range(24))).hexdigest()
    tensors = {
        "a.weight": INFO,
        "größe": TensorInfo("größe", "I64", (), 1, 8, 8),
        "Z": TensorInfo("Z", "BF16", (0, 4), 0, 8, 0),
    }
    digests = {"a.weight": digest, "größe": "11" * 32, "Z": hashlib.sha256().hexdigest()}

    assert content_hash(tensors, digests) == "f38e337781ff0eacba4ba064719faf74b72b09a618332c79ea69ad1c1876cfe7"


def test_the_content_hash_is_what_its_documentation_says(tmp_path):
    path = save_model(tmp_path / "m.safetensors", **ARRAYS)
    dtypes = {"float32": "F32", "int64": "I64", "float16": "F16", "float64": "F64"}
    lines = (
        json.dumps([name, dtypes[array.dtype.name], list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()])
        + "\n"
        for name, array in sorted(ARRAYS.items())
    )

    assert whole_hash(path) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_content_hash_is_of_the_tensors_and_not_of_their_packing(tmp_path):
    one = save_model(tmp_path / "one.safetensors", **ARRAYS)
    save_shards(tmp_path / "shards", SHARDS)
    reordered = tmp_path / "reordered.safetensors"
    header = {"__metadata__": {"note": "packed otherwise"}}
    data = b""
    names = {"float32": "F32", "int64": "I64", "float16": "F16", "float64": "F64"}
    for name, array in reversed(ARRAYS.items()):
        header[name] = entry(list(array.shape), len(data), len(data) + array.nbytes, names[array.dtype.name])
        data += array.tobytes()
    reordered.write_bytes(raw_safetensors(header, data))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    torch.save(tensors, tmp_path / "zip.bin")
    torch.save({"state_dict": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    forms = [one, tmp_path / "shards", reordered, tmp_path / "zip.bin", tmp_path / "old.pth"]

    assert len({whole_hash(form) for form in forms}) == 1


@pytest.mark.parametrize(
    "changed",
    [
        replace(INFO, name="a.weighs"),
        replace(INFO, dtype="I32"),
        replace(INFO, shape=(3, 2)),
        replace(INFO, shape=(6,)),
        replace(INFO, shape=(2, 3, 1)),
    ],
)
def test_the_content_hash_changes_with_name_dtype_and_shape(changed):
    digest = {INFO.name: "00" * 32, changed.name: "00" * 32}

    assert content_hash({changed.name: changed}, digest) != content_hash({INFO.name: INFO}, digest)


@NO_DEADLINE
@given(st.data())
def test_the_content_hash_changes_with_any_byte_of_any_tensor(data):
    name = data.draw(st.sampled_from([name for name, array in ARRAYS.items() if array.nbytes]))
    position = data.draw(st.integers(0, ARRAYS[name].nbytes - 1))
    changed = bytearray(ARRAYS[name].tobytes())
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    array = np.frombuffer(changed, ARRAYS[name].dtype).reshape(ARRAYS[name].shape)

    with tempfile.TemporaryDirectory() as folder:
        before = whole_hash(save_model(Path(folder, "a.safetensors"), **ARRAYS))
        after = whole_hash(save_model(Path(folder, "b.safetensors"), **{**ARRAYS, name: array}))

    assert before != after


def test_the_content_hash_depends_on_where_tensors_end(tmp_path):
    two = save_model(tmp_path / "two.safetensors", a=np.zeros(2, np.uint8), b=np.zeros(2, np.uint8))
    shifted = save_model(tmp_path / "shifted.safetensors", a=np.zeros(1, np.uint8), b=np.zeros(3, np.uint8))
    fewer = save_model(tmp_path / "fewer.safetensors", a=np.zeros(2, np.uint8))

    assert len({whole_hash(two), whole_hash(shifted), whole_hash(fewer)}) == 3


def test_progress_adds_up_to_all_bytes(tmp_path):
    save_shards(tmp_path, SHARDS)
    steps = []

    with open_checkpoint(tmp_path) as checkpoint:
        digests = digest_tensors(checkpoint, lambda *step: steps.append(step))

    total = sum(array.nbytes for array in ARRAYS.values())
    assert steps[-1][1:] == (total, total)
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})
    assert digests == {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in ARRAYS.items()}
