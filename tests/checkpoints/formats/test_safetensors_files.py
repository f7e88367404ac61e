import json
import random
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from examples.benchmarks.fuzz_inputs import header_bomb
from hf_fingerprint.checkpoints import open_checkpoint, reader
from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.formats import safetensors_files
from hf_fingerprint.checkpoints.formats.safetensors_files import TensorInfo, read_layout
from hf_fingerprint.checkpoints.limits import MAX_HEADER, MAX_INDEX
from hf_fingerprint.errors import CheckpointError
from tests.helpers.checkpoint_files import (
    entry,
    open_folder,
    raw_safetensors,
    refused,
    save_model,
    save_shards,
    stranger,
)


def test_the_layout_has_the_offset_of_each_tensor(tmp_path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a.é": np.arange(5, dtype=np.int64)}
    path = save_model(tmp_path / "m.safetensors", **arrays)

    start, infos = read_layout(path, file=3)

    content = path.read_bytes()
    assert start == 8 + int.from_bytes(content[:8], "little")
    assert {info.name for info in infos} == set(arrays)
    for info in infos:
        assert content[info.offset : info.offset + info.nbytes] == arrays[info.name].tobytes()
        assert info.shape == arrays[info.name].shape
        assert info.file == 3
    assert {info.name: info.dtype for info in infos} == {"b": "F32", "a.é": "I64"}


def test_tensors_come_in_the_order_of_their_bytes_not_of_the_header(tmp_path):
    header = {"late": entry([1], 8, 12), "early": entry([2], 0, 8), "__metadata__": {"format": "pt"}}
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors(header, bytes(12)))

    start, infos = read_layout(tmp_path / "m.safetensors")

    assert [info.name for info in infos] == ["early", "late"]
    assert [info.offset - start for info in infos] == [0, 8]


def test_padding_and_unknown_fields_in_the_header_do_no_harm(tmp_path):
    text = b'{"a": {"dtype":"F32", "shape":[2], "data_offsets":[0,8], "comment":"x"}, "__metadata__":{}}     '
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors(text, bytes(range(8))))

    start, (info,) = read_layout(tmp_path / "m.safetensors")

    assert (start, info) == (8 + len(text), TensorInfo("a", "F32", (2,), 0, 8 + len(text), 8))


def test_a_file_without_tensors_has_an_empty_layout(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors({"__metadata__": {"a": "b"}}))

    assert read_layout(tmp_path / "m.safetensors")[1] == []


@pytest.mark.parametrize("dtype", sorted(SIZES))
def test_every_dtype_in_the_table_has_the_size_that_safetensors_gives_it(tmp_path, dtype):
    header = {"a": entry([2, 3], 0, 6 * SIZES[dtype], dtype)}
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors(header, bytes(6 * SIZES[dtype])))

    _, (info,) = read_layout(tmp_path / "m.safetensors")

    assert (info.rows, info.columns, info.row_bytes) == (2, 3, 3 * SIZES[dtype])


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((), 1, 1), ((5,), 5, 1), ((0,), 0, 0), ((0, 4), 0, 0), ((4, 0), 4, 0), ((2, 3, 4), 2, 12)],
)
def test_rows_are_the_first_dimension_and_columns_the_rest(shape, rows, columns):
    info = TensorInfo("a", "F16", shape, 0, 0, 2 * int(np.prod(shape)))

    assert (info.rows, info.columns, info.row_bytes) == (rows, columns, 2 * columns)


BROKEN = {
    "nothing at all": b"",
    "less than a header length": b"\x01\x02\x03",
    "a header that is not JSON": raw_safetensors(b"these are no tensors"),
    "a header that is a list": raw_safetensors(b"[1, 2]"),
    "a header in UTF-16": raw_safetensors('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'.encode("utf-16")),
    "a name that is half a character": raw_safetensors(
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a header longer than any": raw_safetensors({}, length=1 << 62),
    "a header longer than the file": raw_safetensors({}, length=5000),
    "a header above the limit": raw_safetensors(b"{}", length=100_000_001),
    "a header nested without end": raw_safetensors(b'{"__metadata__":' + b"[" * 100_000),
    "offsets that overlap": raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "two tensors in one place": raw_safetensors({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "a hole between tensors": raw_safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "a hole before the first": raw_safetensors({"a": entry([1], 4, 8)}, bytes(8)),
    "an offset past the end": raw_safetensors({"a": entry([4], 0, 16)}, bytes(8)),
    "offsets that run backwards": raw_safetensors({"a": entry([2], 8, 0)}, bytes(8)),
    "a negative offset": raw_safetensors({"a": entry([2], -8, 0)}, bytes(8)),
    "a size that is not the shape's": raw_safetensors({"a": entry([3], 0, 8)}, bytes(8)),
    "a size that is not the dtype's": raw_safetensors({"a": entry([2], 0, 8, "F16")}, bytes(8)),
    "a negative shape": raw_safetensors({"a": entry([-2], 0, 8)}, bytes(8)),
    "a shape beyond 64 bits": raw_safetensors({"a": entry([1 << 32, 1 << 32], 0, 0)}),
    "a dtype that nobody knows": raw_safetensors({"a": entry([2], 0, 8, "F31")}, bytes(8)),
    "bytes after the last tensor": raw_safetensors({"a": entry([2], 0, 8)}, bytes(12)),
    "metadata that are no strings": raw_safetensors({"__metadata__": {"a": 1}}),
    "a tensor called __metadata__": raw_safetensors({"__metadata__": entry([2], 0, 8)}, bytes(8)),
    "an entry without offsets": raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "an entry with three offsets": raw_safetensors(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)
    ),
    "a page of HTML": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_not_well_formed_is_refused_by_name(tmp_path, content):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(content)

    assert str(path) in refused(read_layout, path)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F8_E4M3FNUZ"])
def test_a_dtype_known_only_to_safetensors_is_refused_with_the_tensors_name(tmp_path, dtype):
    count = 16 if dtype == "F4" else 8
    (tmp_path / "m.safetensors").write_bytes(
        raw_safetensors({"blocks.0.scale": entry([count], 0, 8, dtype)}, bytes(8))
    )

    text = refused(read_layout, tmp_path / "m.safetensors")

    assert "blocks.0.scale" in text
    assert dtype in text


def test_a_tensors_name_cannot_break_the_line_of_the_refusal(tmp_path):
    header = {"a\nAll is well.\n": entry([8], 0, 8, "F8_E8M0")}
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors(header, bytes(8)))

    refused(read_layout, tmp_path / "m.safetensors")


def test_every_truncation_of_a_file_is_detected(tmp_path):
    whole = save({"a": np.arange(4, dtype=np.float32), "b": np.ones((3, 2), np.float16)})
    path = tmp_path / "m.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert str(path) in refused(read_layout, path)


def test_a_duplicate_name_in_the_header_cannot_make_two_readers_see_different_tensors(tmp_path):
    one = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    other = b'"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
    for first, second in [(one, other), (other, one)]:
        path = tmp_path / "m.safetensors"
        path.write_bytes(raw_safetensors(b"{" + first + b"," + second + b"}", bytes(4)))
        try:
            _, (info,) = read_layout(path)
        except CheckpointError:
            continue
        loaded = load_file(path)["a"]
        assert (info.shape, info.nbytes) == (loaded.shape, loaded.nbytes)
        assert {"F32": np.float32, "F16": np.float16}[info.dtype] == loaded.dtype


def test_a_header_damaged_anywhere_is_refused_or_still_a_consistent_layout(tmp_path):
    whole = save({"a": np.arange(4, dtype=np.float32), "b.c": np.ones((3, 2), np.float16)}, {"format": "pt"})
    end, dice, path = 8 + int.from_bytes(whole[:8], "little"), random.Random(7), tmp_path / "m.safetensors"
    outcomes = set()
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2])):
            likely = ord(dice.choice('0123456789"[]{},:FIU '))
            damaged[dice.randrange(end)] = dice.choice([dice.randrange(256), likely])
        path.write_bytes(damaged)
        try:
            start, infos = read_layout(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
            continue
        outcomes.add("read")
        at = start
        for info in infos:
            assert info.offset == at
            assert info.nbytes == SIZES[info.dtype] * int(np.prod(info.shape, dtype=object))
            at += info.nbytes
        assert at == len(whole)
    assert outcomes == {"refused", "read"}


def test_a_missing_file_is_named(tmp_path):
    assert "gone.safetensors" in refused(read_layout, tmp_path / "gone.safetensors")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "m.safetensors").mkdir()

    assert "m.safetensors" in refused(read_layout, tmp_path / "m.safetensors")


def test_an_unreadable_file_is_named():
    with open_folder() as folder:
        path = save_model(folder / "m.safetensors", a=np.ones(3, np.float32))
        path.chmod(0)
        with stranger():
            assert str(path) in refused(read_layout, path)


def test_a_header_that_costs_too_much_to_parse_is_refused_unparsed(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    monkeypatch.setattr(safetensors_files, "safe_open", pytest.fail)
    path.write_bytes(header_bomb(MAX_HEADER + 100))
    assert "has a header of 16.1 MB" in refused(partial(read_layout, left_out={}), path)
    path.write_bytes(header_bomb(MAX_HEADER - 100))
    assert "holds more than 4,000,000 values" in refused(partial(read_layout, left_out={}), path)
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert "ends within its header" in refused(read_layout, path)


def test_of_too_many_tensors_the_largest_are_read_of_a_suspect_and_a_base_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader.limits, "MAX_TENSORS", 3)
    path = save_model(tmp_path / "m.safetensors", **{f"x{i}": np.zeros(i + 1, np.float32) for i in range(5)})

    with open_checkpoint(path, suspect=True) as suspect:
        assert set(suspect.tensors) == {"x2", "x3", "x4"}
        assert suspect.left_out == {"...": "2 tensors beyond the 3 largest"}
    assert "5 tensors, and the limit is 3" in refused(open_checkpoint, path)


def test_headers_that_are_too_large_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader.limits, "MAX_HEADERS", 150)
    folder = save_shards(tmp_path, {f"m-{i}.safetensors": {f"x{i}": np.zeros(2, np.float32)} for i in range(3)})

    assert "headers have" in refused(open_checkpoint, folder)
    with open_checkpoint(folder / "m-0.safetensors") as one:
        assert list(one.tensors) == ["x0"]


def test_a_suspects_name_that_is_too_long_is_cut_and_a_bases_is_refused(tmp_path):
    names = ["a" * 2000, "a" * 3000, "b"]
    path = save_model(tmp_path / "m.safetensors", **{name: np.zeros(2, np.float32) for name in names})

    with open_checkpoint(path, suspect=True) as suspect:
        assert sorted(suspect.tensors) == ["a" * 1024, "a" * 1024 + "#2", "b"]
    assert "longer than 1024 characters" in refused(open_checkpoint, path)


def test_an_index_of_too_many_or_impossible_files_is_refused(tmp_path):
    save_model(tmp_path / "m-0.safetensors", a=np.zeros(2, np.float32))
    index = tmp_path / "model.safetensors.index.json"
    for shards, why in (
        ([f"m-{i}.safetensors" for i in range(501)], "names 501 weight files"),
        (["x" * 300], "too long for any disk"),
    ):
        index.write_text(json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(shards)}}))
        assert why in refused(open_checkpoint, tmp_path)
    with index.open("wb") as stream:
        stream.truncate(MAX_INDEX + 1)
    assert "an index of weight files may have 10 MB" in refused(open_checkpoint, tmp_path)
