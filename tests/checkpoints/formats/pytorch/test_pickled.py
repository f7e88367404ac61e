import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_fingerprint.checkpoints import digest_tensors, open_checkpoint, write_copy
from hf_fingerprint.errors import CheckpointError
from tests.helpers.checkpoint_files import bytes_of, names_of, open_folder, refused, stranger


TENSORS = {
    "stem.weight": torch.arange(24.0).reshape(2, 3, 4),
    "stem.größe": torch.tensor(7),
    "head.weight": torch.linspace(-1, 1, 50, dtype=torch.float64).reshape(10, 5),
    "head.half": torch.ones(3, dtype=torch.float16),
    "head.brain": torch.full((2, 2), -1.5, dtype=torch.bfloat16),
    "head.tiny": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
    "mask": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
}


def saved(path: Path, content: Any, legacy: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def read(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(info).tobytes() for name, info in checkpoint.tensors.items()}


def copied(source: Path, folder: Path) -> list[str]:
    folder.mkdir()
    with open_checkpoint(source) as checkpoint:
        return names_of(write_copy(checkpoint, folder, {}).left_out)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class RunsCode:
    """Unpickles by running a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_best.pth", "last.pt", "epoch=3.ckpt"])
def test_every_pickled_form_is_read_with_its_names_dtypes_and_shapes(tmp_path, name, legacy):
    absent = {"head.tiny"} if legacy else set()  # torch can't load such a small type from the old format
    tensors = {n: t for n, t in TENSORS.items() if n not in absent}
    saved(tmp_path / name, tensors, legacy)
    expected = {
        "stem.weight": ("F32", (2, 3, 4)),
        "stem.größe": ("I64", ()),
        "head.weight": ("F64", (10, 5)),
        "head.half": ("F16", (3,)),
        "head.brain": ("BF16", (2, 2)),
        "head.tiny": ("F8_E4M3", (2,)),
        "mask": ("BOOL", (2,)),
        "bytes": ("U8", (5,)),
        "empty": ("F32", (0, 4)),
    }

    with open_checkpoint(tmp_path) as checkpoint:
        found = {n: (i.dtype, i.shape) for n, i in checkpoint.tensors.items()}
        assert found == {n: expected[n] for n in tensors}
        for tensor, info in checkpoint.tensors.items():
            assert checkpoint.read(info).tobytes() == raw_bytes(TENSORS[tensor])


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "module", "net", "model_ema"])
def test_the_tensors_are_found_in_what_training_scripts_wrap_them_in(tmp_path, wrapper):
    path = saved(tmp_path / "x.pth", {"epoch": 3, wrapper: TENSORS, "optimizer": {"state": {}}, "arch": "resnet"})

    assert read(path) == {name: raw_bytes(tensor) for name, tensor in TENSORS.items()}


def test_a_real_modules_state_dict_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = saved(tmp_path / "x.bin", model.state_dict())

    assert read(path) == {name: raw_bytes(tensor) for name, tensor in model.state_dict().items()}


def test_parameters_are_read_like_plain_tensors(tmp_path):
    path = saved(tmp_path / "x.bin", dict(torch.nn.Linear(3, 2).named_parameters()))

    assert set(read(path)) == {"weight", "bias"}


def test_tensors_that_are_not_contiguous_are_read_in_the_order_of_their_shape(tmp_path):
    square = torch.arange(12.0).reshape(3, 4)
    views = {"transposed": square.t(), "strided": square.clone()[:, ::2], "offset": square.clone()[1:]}
    views["expanded"] = torch.tensor([5.0]).expand(4)
    path = saved(tmp_path / "x.bin", views)

    found = read(path)

    for name, view in views.items():
        assert found[name] == np.array(view.tolist(), np.float32).tobytes()


@pytest.mark.parametrize(
    "lazy", [torch.tensor([1 + 2j, 3j]).conj(), torch.tensor([1 + 2j, 3j]).conj().imag], ids=["conjugate", "negative"]
)
def test_tensors_with_a_pending_sign_are_read_with_it_or_refused(tmp_path, lazy):
    path = saved(tmp_path / "x.bin", {"lazy.weight": lazy})
    try:
        found = read(path)
    except CheckpointError as error:
        assert "lazy.weight" in str(error)
    else:
        assert found["lazy.weight"] == raw_bytes(lazy.resolve_conj().resolve_neg())


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex128),
        torch.empty(3, device="meta"),
    ],
    ids=["sparse", "complex128", "meta"],
)
def test_tensors_that_cannot_be_copied_are_refused_by_name(tmp_path, odd):
    path = saved(tmp_path / "x.bin", {"fine": torch.ones(2), "odd.weight": odd})

    assert "odd.weight" in refused(open_checkpoint, path)


@pytest.mark.parametrize("size", [1 << 46, 1 << 62])
def test_a_tensor_that_claims_more_memory_than_there_is_is_refused_by_name(tmp_path, size):
    path = saved(tmp_path / "bomb.bin", {"bomb.weight": torch.zeros(1).expand(size)})

    assert "bomb" in refused(open_checkpoint, path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_the_tensors_of_a_pickle_with_code_are_read_and_its_code_never_runs(
    tmp_path, monkeypatch, legacy, wrapped, forced
):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    content = {"a": torch.ones(2), "evil": RunsCode(marker)}
    path = saved(tmp_path / "pytorch_model.bin", {"state_dict": content} if wrapped else content, legacy)

    assert read(path) == {"a": raw_bytes(torch.ones(2))}
    assert not marker.exists()
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.exists(), "the trap itself does not work"


@pytest.mark.parametrize("name", ["x.bin", "x.pth"])
def test_a_plain_pickle_with_code_is_refused_and_its_code_never_runs(tmp_path, name):
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(pickle.dumps({"a": RunsCode(marker)}))

    assert name in refused(open_checkpoint, tmp_path / name)
    assert not marker.exists()


def test_code_in_one_shard_of_many_never_runs(tmp_path):
    marker = tmp_path / "marker"
    saved(tmp_path / "pytorch_model-1.bin", {"a": torch.ones(2)})
    saved(tmp_path / "pytorch_model-2.bin", {"b": RunsCode(marker)})
    index = '{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}'
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)

    assert "pytorch_model-2.bin" in refused(open_checkpoint, tmp_path)
    assert not marker.exists()


def test_a_pickled_module_is_read_with_its_state_dict_names(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Sequential(torch.nn.BatchNorm2d(4)))
    model[1].register_buffer("passing", torch.ones(2), persistent=False)
    expected = {name: raw_bytes(tensor) for name, tensor in model.state_dict().items()}

    assert read(saved(tmp_path / "x.pt", model)) == expected
    assert read(saved(tmp_path / "y.pt", {"model": model, "epoch": 3})) == expected
    assert read(saved(tmp_path / "z.pt", model, legacy=True)) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 3)))
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), tmp_path / "x.pt")

    assert read(tmp_path / "x.pt") == {name: raw_bytes(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {}, {"epoch": 3}, {"state_dict": {}}, "hello"], ids=repr
)
def test_a_file_without_a_dictionary_of_tensors_is_refused_by_name(tmp_path, content):
    assert "x.bin" in refused(open_checkpoint, saved(tmp_path / "x.bin", content))


@pytest.mark.parametrize(
    "content", [b"", b"hello world, not a pickle\n", b"PK\x03\x04 almost a zip", bytes(1000)], ids=repr
)
def test_a_file_that_is_not_a_checkpoint_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)

    assert "x.bin" in refused(open_checkpoint, tmp_path / "x.bin")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_refused_by_name_wherever_it_is_cut(tmp_path, legacy):
    whole = saved(tmp_path / "whole.bin", {"a": torch.ones(100), "b": torch.zeros(3)}, legacy).read_bytes()
    path = tmp_path / "cut.bin"
    for length in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(open_checkpoint, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_read_or_refused_by_name_and_nothing_else(tmp_path, legacy):
    whole = saved(tmp_path / "whole.bin", {"a": torch.ones(4, 3), "b.c": torch.zeros(2, dtype=torch.int64)}, legacy)
    content, dice, path = whole.read_bytes(), random.Random(3), tmp_path / "damaged.bin"
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 1, 2, 4])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                digest_tensors(checkpoint)
            outcomes.add("read")
        except CheckpointError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_duplicate_names_are_refused(tmp_path):
    path = saved(tmp_path / "x.bin", {0: torch.ones(1), "0": torch.zeros(1)})

    assert "0" in refused(open_checkpoint, path)


@pytest.mark.parametrize("name", ["__metadata__", "half\ud800"])
def test_a_name_that_safetensors_cannot_hold_never_makes_a_copy_that_cannot_be_loaded(tmp_path, name):
    path = saved(tmp_path / "x.bin", {"fine": torch.ones(2), name: torch.ones(1)})
    try:
        copied(path, tmp_path / "copy")
    except CheckpointError as error:
        assert "x.bin" in str(error)
    else:
        assert len(load_file(tmp_path / "copy" / "model.safetensors")) == 2


def test_a_file_that_shrinks_while_open_is_refused_by_name_and_does_not_end_the_process(tmp_path):
    path = saved(tmp_path / "x.bin", {"a": torch.ones(1 << 18)})
    program = (
        "import os, sys; from hf_fingerprint.checkpoints import digest_tensors, open_checkpoint\n"
        "checkpoint = open_checkpoint(sys.argv[1]); os.truncate(sys.argv[1], 1000); digest_tensors(checkpoint)"
    )

    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)

    assert done.returncode == 1, f"ended by signal {-done.returncode}"
    assert "CheckpointError" in done.stderr
    assert str(path) in done.stderr


def test_an_unreadable_file_is_refused_by_name():
    with open_folder() as folder:
        path = saved(folder / "x.bin", {"a": torch.ones(2)})
        path.chmod(0)
        with stranger():
            assert str(path) in refused(open_checkpoint, path)


def test_a_copy_of_a_pickled_folder_is_safetensors_and_leaves_the_pickles_out(tmp_path):
    source = tmp_path / "source"
    saved(source / "pytorch_model.bin", TENSORS)
    saved(source / "training_args.bin", {"lr": 0.1})
    (source / "config.json").write_text('{"architecture": "x"}')

    left_out = copied(source, tmp_path / "copy")

    assert left_out == ["pytorch_model.bin", "training_args.bin"]
    assert set(bytes_of(tmp_path / "copy")) == {"config.json", "model.safetensors"}
    loaded = load_file(tmp_path / "copy" / "model.safetensors")
    assert {name: raw_bytes(tensor) for name, tensor in loaded.items()} == {
        name: raw_bytes(tensor) for name, tensor in TENSORS.items()
    }
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert {name: tensor.shape for name, tensor in loaded.items()} == {n: t.shape for n, t in TENSORS.items()}


def test_the_converted_header_is_aligned_and_has_format_pt(tmp_path):
    copied(saved(tmp_path / "x.pth", TENSORS), tmp_path / "copy")

    content = (tmp_path / "copy" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    assert b'"__metadata__":{"format":"pt"}' in content[: 8 + length]


def test_pickled_shards_become_one_file_and_leave_the_index_out(tmp_path):
    source = tmp_path / "source"
    saved(source / "pytorch_model-1.bin", {"a": torch.ones(2)})
    saved(source / "pytorch_model-2.bin", {"b": torch.zeros(3)}, legacy=True)
    index = '{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}'
    (source / "pytorch_model.bin.index.json").write_text(index)

    left_out = copied(source, tmp_path / "copy")

    assert left_out == ["pytorch_model-1.bin", "pytorch_model-2.bin", "pytorch_model.bin.index.json"]
    loaded = load_file(tmp_path / "copy" / "model.safetensors")
    assert set(bytes_of(tmp_path / "copy")) == {"model.safetensors"}
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"a": [1, 1], "b": [0, 0, 0]}


def test_rewritten_tensors_of_a_pickle_are_rewritten_and_the_others_not(tmp_path):
    path = saved(tmp_path / "x.bin", {"a": torch.ones(5, 3), "b": torch.ones(4)})
    (tmp_path / "copy").mkdir()

    def double(raw: np.ndarray) -> None:
        raw.view(np.float32)[:] *= 2

    with open_checkpoint(path) as checkpoint:
        before = digest_tensors(checkpoint)
        written = write_copy(checkpoint, tmp_path / "copy", {"a": double})
        assert digest_tensors(checkpoint) == before

    loaded = load_file(tmp_path / "copy" / "model.safetensors")
    assert loaded["a"].tolist() == [[2.0] * 3] * 5
    assert loaded["b"].tolist() == [1.0] * 4
    assert written.digests["a"] != before["a"]
    assert written.digests["b"] == before["b"]


def test_tied_tensors_are_read_and_copied_as_two_equal_tensors(tmp_path):
    tied = torch.arange(4.0)
    path = saved(tmp_path / "x.bin", {"embed.weight": tied, "between": torch.ones(1), "head.weight": tied})

    assert read(path)["embed.weight"] == read(path)["head.weight"] == raw_bytes(tied)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tied == {"head.weight": "embed.weight"}
    copied(path, tmp_path / "copy")
    loaded = load_file(tmp_path / "copy" / "model.safetensors")
    assert loaded["embed.weight"].tolist() == loaded["head.weight"].tolist() == [0, 1, 2, 3]


def test_two_empty_tensors_are_not_tied(tmp_path):
    path = saved(tmp_path / "x.bin", {"a": torch.zeros(0), "b": torch.zeros(0, 3), "c": torch.ones(1)})

    assert copied(path, tmp_path / "copy") == ["x.bin"]


def test_views_of_one_memory_that_do_not_overlap_are_copied(tmp_path):
    whole = torch.arange(6.0)
    path = saved(tmp_path / "x.bin", {"a": whole[:3], "b": whole[3:]})

    copied(path, tmp_path / "copy")

    loaded = load_file(tmp_path / "copy" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {"a": [0, 1, 2], "b": [3, 4, 5]}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_base_with_views_of_one_memory_that_overlap_in_part_is_refused_and_a_suspect_read(tmp_path, legacy):
    whole = torch.arange(6.0)
    path = saved(tmp_path / "x.bin", {"first.weight": whole[:4], "second.weight": whole[2:]}, legacy)

    text = refused(open_checkpoint, path)
    assert "first.weight" in text
    assert "second.weight" in text
    with open_checkpoint(path, suspect=True) as suspect:
        assert suspect.read(suspect.tensors["second.weight"]).tobytes() == raw_bytes(whole[2:])


def test_non_contiguous_tensors_read_in_blocks_equal_those_read_at_once(tmp_path):
    tall = torch.arange(600_000.0).reshape(3, 200_000).t()
    path = saved(tmp_path / "x.bin", {"tall": tall})

    with open_checkpoint(path) as checkpoint:
        info = checkpoint.tensors["tall"]
        blocks = [raw.tobytes() for _, raw in checkpoint.blocks(info)]
        assert len(blocks) > 1
        assert b"".join(blocks) == raw_bytes(tall)
        assert checkpoint.read(info, 13, 1001).tobytes() == raw_bytes(tall)[13:1001]


def test_reading_needs_no_pytorch(tmp_path):
    path = saved(tmp_path / "x.bin", {"a": torch.arange(3.0)})
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from hf_fingerprint.checkpoints import digest_tensors, open_checkpoint\n"
        "print(list(digest_tensors(open_checkpoint(sys.argv[1]))))"
    )

    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "['a']"


def test_flat_vectors_of_fsdp_are_named_with_what_to_do(tmp_path):
    path = saved(
        tmp_path / "x.pt", {"model": {"_fsdp_wrapped_module._flat_param": torch.ones(5), "head": torch.ones(2)}}
    )

    with open_checkpoint(path, suspect=True) as opened:
        assert list(opened.tensors) == ["head"]
        assert "sharded state dict" in opened.left_out["_fsdp_wrapped_module._flat_param"]
