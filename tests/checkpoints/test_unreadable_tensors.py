"""Unreadable tensors of a suspect are left out; for a base they are an error."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from hf_fingerprint.checkpoints import TensorInfo, limits, open_checkpoint
from hf_fingerprint.checkpoints.formats.torch_tensors import DTYPES
from hf_fingerprint.errors import CheckpointError
from tests.helpers.checkpoint_files import entry, raw_safetensors, refused, save_model, save_shards


GOOD = np.arange(6, dtype=np.float32)
ODDDTYPES = ["F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ", "C128", "I4", "Q9"]


def with_odd(dtype: str, **other: Any) -> bytes:
    """A file with a good tensor, and between its rows' bytes and the end one of this dtype."""
    header = {"odd.scale": entry([16], 24, 32, dtype), "good.weight": entry([2, 3], 0, 24), **other}
    return raw_safetensors(header, GOOD.tobytes() + bytes(8))


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def found_in(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The tensors of a suspect, and what was left out."""
    with open_checkpoint(path, suspect=True) as checkpoint:
        read = {name: checkpoint.read(info).tobytes() for name, info in checkpoint.tensors.items()}
        return read, checkpoint.left_out


@pytest.mark.parametrize("dtype", ODDDTYPES)
def test_an_unknown_dtype_is_left_out_of_a_suspect_and_an_error_for_a_base(tmp_path, dtype):
    count = 16 if dtype == "F4" else 8
    header = {"odd.scale": entry([count], 24, 32, dtype), "good.weight": entry([2, 3], 0, 24)}
    if dtype == "F6_E2M3":
        header = {"odd.scale": entry([8], 24, 30, dtype), "good.weight": entry([2, 3], 0, 24)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(header, GOOD.tobytes() + bytes(6 if dtype == "F6_E2M3" else 8)))

    assert found_in(path) == ({"good.weight": GOOD.tobytes()}, {"odd.scale": f"dtype {dtype}"})
    assert dtype in refused(open_checkpoint, path)


def test_a_suspect_without_anything_odd_is_opened_as_a_base_is(tmp_path):
    path = save_model(tmp_path / "model.safetensors", a=GOOD, b=np.arange(3))

    with open_checkpoint(path) as base, open_checkpoint(path, suspect=True) as suspect:
        assert base.tensors == suspect.tensors
        assert base.left_out == suspect.left_out == {}


@pytest.mark.parametrize("shape", [[0], [0, 4], [4, 0]])
def test_an_empty_tensor_is_left_out_of_a_suspect_and_read_of_a_base(tmp_path, shape):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors({"a": entry(shape, 0, 0), "b": entry([6], 0, 24)}, GOOD.tobytes()))

    assert found_in(path) == ({"b": GOOD.tobytes()}, {"a": "no elements"})
    with open_checkpoint(path) as base:
        assert set(base.tensors) == {"a", "b"}


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (1,)])
def test_rows_and_columns_of_any_shape_without_division_by_zero(shape):
    info = TensorInfo("a", "F32", shape, 0, 0, 4 * int(np.prod(shape)))

    assert info.row_bytes * info.rows == info.nbytes
    assert info.columns * 4 == info.row_bytes


def test_integers_and_complex_numbers_stay_among_the_tensors(tmp_path):
    header = {"z": entry([2], 0, 16, "C64"), "u": entry([4], 16, 24, "U16")}
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors(header, bytes(24)))

    read, left_out = found_in(tmp_path)

    assert (set(read), left_out) == ({"z", "u"}, {})


BROKEN = {
    "truncated": with_odd("Q9")[:-1],
    "longer": with_odd("Q9") + b"x",
    "overlap": with_odd("Q9", more=entry([2], 20, 28)),
    "hole": raw_safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12, "Q9")}, bytes(12)),
    "backwards": with_odd("Q9", more=entry([2], 32, 24)),
    "negative": with_odd("Q9", more=entry([2], -8, 0)),
    "shape and size apart": with_odd("Q9", more=entry([3], 32, 32)),
    "fractions": with_odd("Q9", more=entry([0.5], 32, 32)),
    "a shape of booleans": with_odd("Q9", more=entry([False], 32, 32)),
    "shape without end": with_odd("Q9", more=entry([0] * 10_000, 32, 32)),
    "metadata": with_odd("Q9", __metadata__={"a": 1}),
    "no dtype": with_odd("Q9", more={"shape": [0], "data_offsets": [32, 32]}),
    "dtype no text": with_odd("Q9", more={"dtype": ["Q9"], "shape": [0], "data_offsets": [32, 32]}),
    "half a character": with_odd("\ud800"),
    "a list": raw_safetensors(b"[1, 2]"),
    "deep": raw_safetensors(b"[" * 100_000),
    "huge header": raw_safetensors({}, length=1 << 62),
    "all known": raw_safetensors({"a": entry([3], 0, 8)}, bytes(8)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_suspects_malformed_file_is_refused(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[what])

    assert str(path) in refused(lambda: open_checkpoint(path, suspect=True))


def test_a_suspects_header_damaged_anywhere_is_refused_or_a_layout_within_the_file(tmp_path):
    whole = with_odd("Q9", __metadata__={"format": "pt"})
    end, dice, path = 8 + int.from_bytes(whole[:8], "little"), random.Random(5), tmp_path / "m.safetensors"
    outcomes = set()
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2])):
            likely = ord(dice.choice('0123456789"[]{},:FIU '))
            damaged[dice.randrange(end)] = dice.choice([dice.randrange(256), likely])
        path.write_bytes(damaged)
        try:
            read, left_out = found_in(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
            continue
        outcomes.add("read")
        assert len(read) + len(left_out) > 0
        assert sum(map(len, read.values())) <= 32
    assert outcomes == {"refused", "read"}


def test_a_suspects_index_that_misplaces_a_tensor_leaves_that_one_out(tmp_path):
    shards = {"m-1.safetensors": {"a": GOOD}, "m-2.safetensors": {"b": GOOD}}
    save_shards(tmp_path, shards, a="m-2.safetensors", b="m-2.safetensors", c="m-1.safetensors")

    read, left_out = found_in(tmp_path)

    assert set(read) == {"a", "b"}
    assert left_out == {"c": "not in m-1.safetensors"}
    assert "places tensor" in refused(open_checkpoint, tmp_path)


def test_a_tensor_in_two_shards_of_a_suspect_is_there_twice(tmp_path):
    shards = {"m-1.safetensors": {"a": 2 * GOOD}, "m-2.safetensors": {"a": GOOD}}
    save_shards(tmp_path, shards, a="m-1.safetensors", b="m-2.safetensors")

    read, _ = found_in(tmp_path)

    assert read == {"a": (2 * GOOD).tobytes(), "a#2": GOOD.tobytes()}


ODD_TENSORS = {
    "layout sparse_coo": torch.eye(3).to_sparse(),
    "layout sparse_csr": torch.eye(3).to_sparse_csr(),
    "dtype complex128": torch.ones(3, dtype=torch.complex128),
    "dtype float8_e8m0fnu": torch.ones(3).to(torch.float8_e8m0fnu),
    "no data": torch.empty(3, device="meta"),
    "no elements": torch.zeros(0, 4),
    "larger than its file": torch.zeros(1).expand(1 << 46),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reason", ODD_TENSORS)
def test_a_pickled_side_tensor_that_cannot_be_read_is_left_out_of_a_suspect(tmp_path, reason):
    path = saved(tmp_path / "x.bin", {"odd.scale": ODD_TENSORS[reason], "good.weight": torch.from_numpy(GOOD)})

    assert found_in(path) == ({"good.weight": GOOD.tobytes()}, {"odd.scale": reason})
    if reason != "no elements":
        assert "odd.scale" in refused(open_checkpoint, path)


def test_many_non_contiguous_views_of_one_memory_take_bounded_memory(tmp_path):
    flat = torch.zeros(1 << 24, dtype=torch.uint8).reshape(1 << 12, 1 << 12)
    path = saved(tmp_path / "x.bin", {f"v{number:02}": flat.t() for number in range(40)})

    read, left_out = found_in(path)

    assert len(read) + len(left_out) == 40
    assert sum(map(len, read.values())) <= limits.MAX_EXPANSION + limits.MAX_EXPANSION_RATIO * path.stat().st_size
    assert set(left_out.values()) == {"larger than its file"}


def test_what_is_left_out_is_named_on_one_line(tmp_path):
    path = saved(tmp_path / "x.bin", {"a\nb": torch.ones(1, dtype=torch.complex128), "\ud800": torch.ones(1)})

    assert found_in(path)[1] == {"a\\nb": "dtype complex128", "\\ud800": "an invalid name"}
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors({"a\nb": entry([8], 0, 8, "Q\n9")}, bytes(8)))
    assert found_in(tmp_path / "m.safetensors")[1] == {"a\\nb": "dtype Q\\n9"}


def test_a_suspect_of_which_nothing_can_be_read_is_open_with_no_tensors(tmp_path):
    path = saved(tmp_path / "x.bin", {"a": torch.ones(1, dtype=torch.complex128)})

    assert found_in(path) == ({}, {"a": "dtype complex128"})


def test_every_dtype_that_torch_has_is_known_or_left_out(tmp_path):
    kinds = {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    (tmp_path / "model.safetensors").write_bytes(save({"a": GOOD}))

    for dtype in kinds:
        try:
            path = saved(tmp_path / "x.bin", {"odd": torch.empty(4, dtype=dtype), "good": torch.from_numpy(GOOD)})
        except (RuntimeError, TypeError, KeyError, AttributeError):
            continue  # torch itself can't make or save such a tensor
        try:
            read, left_out = found_in(path)
        except CheckpointError:
            continue  # or can't load it
        name = str(dtype).removeprefix("torch.")
        assert "good" in read
        assert ("odd" in read) == (name in DTYPES)
        assert json.dumps(left_out) == json.dumps({} if "odd" in read else {"odd": f"dtype {name}"})


def test_reasons_are_short(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(raw_safetensors({"a": entry([8], 0, 8, "Q" * 5000)}, bytes(8)))

    reason = found_in(tmp_path / "m.safetensors")[1]["a"]

    assert re.fullmatch(r"dtype Q{20}", reason)
