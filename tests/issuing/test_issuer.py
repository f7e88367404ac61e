import errno
import json
import os
import shutil
import unicodedata
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hf_fingerprint import Issuer, Vault, issue, trace, verify
from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint, writer
from hf_fingerprint.errors import CarrierError, CheckpointError, CodeError, FingerprintError, StorageError, VaultError
from hf_fingerprint.keys import commitment
from tests.helpers.small_models import (
    PLAIN_CARRIERS,
    PLAIN_SETTINGS,
    SETTINGS,
    bytes_of,
    names_in,
    new_vault,
    plain_arrays,
    save_plain,
    save_timm,
    save_vit,
    unlocked_vault,
)
from tests.helpers.unsafe_files import CANARY, write_unsafe_files


OTHERS = {"README_md": "# A model\n", "config_json": "{}", "labels__classes_txt": "cat\ndog\n"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A registered base that no library builds, its open issuer, and an unlocked vault."""
    root = tmp_path_factory.mktemp("plain")
    model, vault = save_plain(root / "model", **OTHERS), unlocked_vault(root / "vault")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        yield SimpleNamespace(model=model, vault=vault, issuer=issuer, base=issuer.base)


def accused(suspect: Path, vault: Vault) -> list[str]:
    return [score.recipient for score in trace(suspect, vault).accused]


def header_of(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[: 8 + int.from_bytes(raw[:8], "little")]


def tensor_bytes(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(info).tobytes() for name, info in checkpoint.tensors.items()}


def save_as(path: Path, arrays: dict[str, np.ndarray], dtype: str) -> Path:
    """Saves floats in half precision, the rest unchanged."""
    import torch
    from safetensors.torch import save_file as save_torch

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    half = {n: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for n, t in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_torch(half, path)
    return path


def test_only_the_carriers_bytes_differ_from_the_base(plain, tmp_path):
    copy = plain.issuer.issue("alice", tmp_path / "alice")

    before, after = bytes_of(plain.model), bytes_of(copy.path)
    assert before.keys() == after.keys() == {"model.safetensors", "README.md", "config.json", "labels/classes.txt"}
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    assert header_of(plain.model / "model.safetensors") == header_of(copy.path / "model.safetensors")
    old, new = tensor_bytes(plain.model), tensor_bytes(copy.path)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {name for name in old if name.endswith(PLAIN_CARRIERS)} == {c.name for c in plain.base.carriers}
    assert len(changed) == 17


def test_integer_and_empty_tensors_are_kept(plain, tmp_path):
    copy = plain.issuer.issue("alice", tmp_path / "alice")

    arrays = load_file(copy.path / "model.safetensors")
    assert arrays["bn.num_batches_tracked"].dtype == np.int64
    assert arrays["bn.num_batches_tracked"] == 1234
    assert arrays["nothing.weight"].shape == (0, 7)


def test_every_weight_moves_by_its_rows_amplitude(plain, tmp_path):
    copy = plain.issuer.issue("alice", tmp_path / "alice")

    before, after = load_file(plain.model / "model.safetensors"), load_file(copy.path / "model.safetensors")
    for carrier in plain.base.carriers:
        old = before[carrier.name].reshape(len(before[carrier.name]), -1).astype(np.float64)
        moved = after[carrier.name].reshape(old.shape) - old
        amplitude = carrier.eps * np.sqrt((old**2).mean(axis=1))
        assert np.allclose(np.abs(moved), amplitude[:, None], rtol=1e-3)
        assert 0.4 < (moved > 0).mean() < 0.6


def test_the_base_is_only_read(plain, tmp_path):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in plain.model.rglob("*") if p.is_file()}

    plain.issuer.issue("alice", tmp_path / "alice")

    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in plain.model.rglob("*") if p.is_file()}


def test_two_copies_differ_in_the_carriers_and_trace_apart(plain, tmp_path):
    one, two = (plain.issuer.issue(name, tmp_path / name) for name in ("one", "two"))

    assert one.content_hash != two.content_hash
    assert one.commitment != two.commitment
    first, second = load_file(one.path / "model.safetensors"), load_file(two.path / "model.safetensors")
    differ = np.concatenate([(first[c.name] != second[c.name]).ravel() for c in plain.base.carriers])
    assert 0.1 < differ.mean() < 0.5
    assert accused(one.path, plain.vault) == ["one"]
    assert accused(two.path, plain.vault) == ["two"]


def test_the_result_says_what_the_files_and_the_record_say(plain, tmp_path):
    copy = plain.issuer.issue("hashed", tmp_path / "copy")

    with open_checkpoint(copy.path) as checkpoint:
        assert copy.content_hash == content_hash(checkpoint.tensors, digest_tensors(checkpoint))
    (record,) = plain.vault.copies(recipient="hashed")
    assert (record.copy_id, record.content_hash, record.commitment) == (
        copy.copy_id,
        copy.content_hash,
        copy.commitment,
    )
    assert copy.commitment == commitment(plain.vault.copy_key(record), "hashed", copy.content_hash)
    assert (copy.new, copy.left_out, copy.base_id) == (True, (), plain.base.base_id)
    assert copy.coalition_certified == plain.base.certified >= 1
    assert json.loads(json.dumps(copy.to_dict())) == {**copy.to_dict(), "path": str(tmp_path / "copy"), "left_out": []}
    with pytest.raises(FrozenInstanceError):
        copy.recipient = "mallory"


def test_progress_adds_up_to_the_size_of_the_copy(plain, tmp_path):
    steps = []

    plain.issuer.issue("counted", tmp_path / "copy", lambda *step: steps.append(step))

    done = [done for _, done, _ in steps]
    assert done == sorted(done) and {total for _, _, total in steps} == {plain.issuer.copy_bytes}
    assert done[-1] == plain.issuer.copy_bytes == sum(a.nbytes for a in plain_arrays().values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_bases_are_issued_in_their_precision_and_traced(plain, tmp_path, dtype):
    arrays = plain_arrays({"float16": 20, "bfloat16": 21}[dtype])
    model = save_as(tmp_path / "half" / "model.safetensors", arrays, dtype).parent

    copies = [issue(model, f"{dtype} {i}", plain.vault, tmp_path / f"copy {i}", PLAIN_SETTINGS) for i in range(2)]

    with open_checkpoint(model) as before, open_checkpoint(copies[0].path) as after:
        assert {n: (i.dtype, i.shape) for n, i in before.tensors.items()} == {
            n: (i.dtype, i.shape) for n, i in after.tensors.items()
        }
    assert accused(copies[0].path, plain.vault) == [f"{dtype} 0"]
    assert accused(copies[1].path, plain.vault) == [f"{dtype} 1"]


def test_a_mark_below_the_half_precision_step_is_rounded_up_as_often_as_keeps_its_size(plain, tmp_path):
    from safetensors.torch import load_file as load_torch

    model = save_as(tmp_path / "half" / "model.safetensors", plain_arrays(22), "bfloat16").parent
    copy = issue(model, "rounded", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    before, after = load_torch(model / "model.safetensors"), load_torch(copy.path / "model.safetensors")
    base = next(b for b in plain.vault.bases() if b.base_id == copy.base_id)
    for carrier in base.carriers:
        moved = (after[carrier.name].double() - before[carrier.name].double()).abs().flatten(1).numpy()
        relative = moved / carrier.amplitude[:, None]
        assert (relative > 1.2).mean() > 0.1  # steps larger than the mark,
        assert (relative == 0).mean() > 0.1  # and none at all,
        assert relative.mean() == pytest.approx(1, abs=0.05)  # but as much in all


def test_a_sparse_base_keeps_its_zeros(plain, tmp_path):
    arrays, rng = plain_arrays(5), np.random.default_rng(0)
    for name in arrays:
        if name.endswith(PLAIN_CARRIERS):
            arrays[name] *= rng.random(arrays[name].shape) < 0.4
    model = save_plain(tmp_path / "sparse", arrays)

    copy = issue(model, "sparse", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    after = load_file(copy.path / "model.safetensors")
    for name in arrays:
        if name.endswith(PLAIN_CARRIERS):
            assert np.array_equal(arrays[name] == 0, after[name] == 0)
            assert (arrays[name] != after[name]).mean() == pytest.approx(0.4, abs=0.05)
    assert accused(copy.path, plain.vault) == ["sparse"]


def test_the_same_call_again_finds_the_copy_and_changes_nothing(plain, tmp_path):
    first = issue(plain.model, "again", plain.vault, tmp_path / "copy")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in first.path.rglob("*") if p.is_file()}

    second = issue(plain.model, "again", plain.vault, tmp_path / "copy")

    assert second == replace(first, new=False)
    assert before == {
        p: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ino) for p in first.path.rglob("*") if p.is_file()
    }
    assert [c.copy_id for c in plain.vault.copies(recipient="again")] == [first.copy_id]


def test_one_recipient_may_have_copies_in_several_places(plain, tmp_path):
    copies = [plain.issuer.issue("twofold", tmp_path / place) for place in ("here", "there")]

    assert len({copy.copy_id for copy in copies}) == len({copy.content_hash for copy in copies}) == 2
    result = trace(copies[1].path, plain.vault)
    assert [score.copy_id for score in result.accused] == [copies[1].copy_id]


def test_a_copy_that_was_deleted_is_issued_anew_and_the_old_one_still_traces(plain, tmp_path):
    first = plain.issuer.issue("lost", tmp_path / "copy")
    leaked = shutil.move(first.path, tmp_path / "leaked")

    second = plain.issuer.issue("lost", tmp_path / "copy")

    assert second.new
    assert second.content_hash != first.content_hash
    assert [score.copy_id for score in trace(leaked, plain.vault).accused] == [first.copy_id]


def test_a_copy_that_was_changed_is_neither_found_whole_nor_overwritten(plain, tmp_path):
    copy = plain.issuer.issue("changed", tmp_path / "copy")
    arrays = load_file(copy.path / "model.safetensors")
    arrays["head.bias"][0] += 1
    save_file(arrays, copy.path / "model.safetensors")
    before = bytes_of(copy.path)

    with pytest.raises(CheckpointError, match=r"not as it was issued to changed: move it away"):
        plain.issuer.issue("changed", tmp_path / "copy")

    assert bytes_of(copy.path) == before


def test_a_copy_that_was_moved_is_known_where_it_lies(plain, tmp_path):
    first = plain.issuer.issue("mover", tmp_path / "copy")
    first.path.rename(tmp_path / "elsewhere")
    before = bytes_of(tmp_path)

    again = plain.issuer.issue("mover", tmp_path / "elsewhere")

    assert (again.copy_id, again.new, again.path) == (first.copy_id, False, tmp_path / "elsewhere")
    assert bytes_of(tmp_path) == before


def test_a_copy_that_was_moved_and_changed_is_refused(plain, tmp_path):
    copy = plain.issuer.issue("tamperer", tmp_path / "copy")
    moved = copy.path.rename(tmp_path / "elsewhere")
    arrays = load_file(moved / "model.safetensors")
    arrays["head.bias"][0] += 1
    save_file(arrays, moved / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"elsewhere exists and is not this recipient's copy"):
        plain.issuer.issue("tamperer", moved)


@pytest.mark.parametrize("what", ["a file", "a folder with a file", "another recipient's copy"])
def test_a_place_that_is_taken_is_refused_and_left_alone(plain, tmp_path, what):
    out = tmp_path / "taken"
    if what == "a file":
        out.write_text("mine")
    elif what == "a folder with a file":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        plain.issuer.issue("somebody", out)
    before = bytes_of(tmp_path)

    with pytest.raises(CheckpointError, match=r"taken exists and is not this recipient's copy"):
        plain.issuer.issue("refused", out)

    assert bytes_of(tmp_path) == before
    assert names_in(tmp_path) == ["taken"]
    assert plain.vault.copies(recipient="refused") == []


def test_an_empty_folder_is_a_place_for_a_copy(plain, tmp_path):
    (tmp_path / "empty").mkdir()

    copy = plain.issuer.issue("filled", tmp_path / "empty")

    assert "model.safetensors" in bytes_of(copy.path)
    assert names_in(tmp_path) == ["empty"]


def test_a_link_to_an_empty_folder_is_filled_or_refused_in_a_sentence(plain, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")

    try:
        copy = plain.issuer.issue("linked", tmp_path / "link")
    except FingerprintError:
        assert names_in(tmp_path) == ["elsewhere", "link"]
    else:
        assert "model.safetensors" in bytes_of(copy.path)


def test_a_place_under_a_file_is_refused_in_a_sentence(plain, tmp_path):
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(FingerprintError, match="file"):
        plain.issuer.issue("nested", tmp_path / "file" / "copy")

    assert plain.vault.copies(recipient="nested") == []


def test_a_relative_place_is_recorded_as_an_absolute_one(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    copy = plain.issuer.issue("relative", Path("deep/er/copy"))

    assert copy.path == tmp_path / "deep" / "er" / "copy"
    assert [c.out for c in plain.vault.copies(recipient="relative")] == [str(copy.path)]
    assert not plain.issuer.issue("relative", copy.path).new


@pytest.mark.parametrize("name", ["", "  ", "x" * 256, "new\nline", "\x1b[31mred", "nul\0", "tab\t"], ids=ascii)
def test_names_that_cannot_be_shown_are_refused_before_anything_is_made(plain, tmp_path, name):
    with pytest.raises(FingerprintError, match="1 to 255 printable characters"):
        plain.issuer.issue(name, tmp_path / "copy")

    assert names_in(tmp_path) == []
    assert plain.vault.copies(recipient=name) == []


@pytest.mark.parametrize(
    "name", ["Größe & Söhne <a@b.c>", "[bold]x", "名" * 60, "x" * 200, "-rf", "a/b", ".."], ids=range(7)
)
def test_any_printable_name_goes_with_a_place_of_its_own(plain, tmp_path, name):
    copy = plain.issuer.issue(name, tmp_path / "copy")

    assert accused(copy.path, plain.vault) == [name]


@pytest.mark.parametrize("name", [".", "..", "a/b", "../a", "/etc", "a\\b", ".hidden"])
def test_names_that_cannot_be_folders_are_refused_among_several(plain, tmp_path, name):
    with pytest.raises(FingerprintError, match="can't name a folder"):
        list(plain.issuer.issue_all(["good one", name], tmp_path / "out"))

    assert names_in(tmp_path) == []
    assert plain.vault.copies(recipient="good one") == []


@pytest.mark.parametrize("name", ["名" * 100, "x" * 200], ids=["300 bytes", "200 bytes"])
def test_names_too_long_for_a_folder_are_refused_in_a_sentence(plain, tmp_path, name):
    try:
        (copy,) = plain.issuer.issue_all([name], tmp_path)
    except FingerprintError:
        assert names_in(tmp_path) == []
    else:
        assert copy.path.is_dir()


def test_several_recipients_get_a_folder_each(plain, tmp_path):
    names = ["first", "second and third", "[bold]x", "ünï"]

    copies = list(plain.issuer.issue_all(names, tmp_path / "out"))

    assert [copy.recipient for copy in copies] == names
    assert names_in(tmp_path / "out") == sorted(names)
    for copy in copies:
        assert copy.path == tmp_path / "out" / copy.recipient
        assert accused(copy.path, plain.vault) == [copy.recipient]
    assert [c.new for c in plain.issuer.issue_all(names, tmp_path / "out")] == [False] * 4


def test_a_single_file_is_a_base_without_other_files(plain, tmp_path):
    folder = save_plain(tmp_path / "many", plain_arrays(3), notes_txt="not the model's")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")

    copy = issue(folder / "weights.safetensors", "of a file", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert list(bytes_of(copy.path)) == ["weights.safetensors"]
    assert accused(copy.path / "weights.safetensors", plain.vault) == ["of a file"]


def test_a_pickled_base_becomes_safetensors(plain, tmp_path):
    import torch

    state = {name: torch.from_numpy(array) for name, array in plain_arrays(4).items()}
    (tmp_path / "pickled").mkdir()
    torch.save(state, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "LICENSE").write_text("kept")

    copy = issue(tmp_path / "pickled", "of a pickle", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert sorted(bytes_of(copy.path)) == ["LICENSE", "model.safetensors"]
    assert copy.left_out == (("pytorch_model.bin", "the weights as a pickle"),)
    arrays = load_file(copy.path / "model.safetensors")
    assert {n: (a.dtype, a.shape) for n, a in arrays.items()} == {
        n: (a.dtype, a.shape) for n, a in plain_arrays(4).items()
    }
    assert np.array_equal(arrays["pos_embed"], plain_arrays(4)["pos_embed"])
    assert accused(copy.path, plain.vault) == ["of a pickle"]


def test_tied_tensors_of_a_pickle_are_one_carrier_and_stay_equal_in_a_copy(plain, tmp_path):
    import torch

    state = {name: torch.from_numpy(array) for name, array in plain_arrays(7).items()}
    same_weights = plain.base.carriers[-1].name
    torch.save({"first.weight": state[same_weights], **state}, tmp_path / "tied.pth")

    copy = issue(tmp_path / "tied.pth", "of ties", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    arrays = load_file(copy.path / "model.safetensors")
    assert set(arrays) == {"first.weight", *state}
    assert np.array_equal(arrays["first.weight"], arrays[same_weights])
    assert not np.array_equal(arrays[same_weights], plain_arrays(7)[same_weights])
    base = next(base for base in plain.vault.bases() if base.base_id == copy.base_id)
    assert len({"first.weight", same_weights} & {carrier.name for carrier in base.carriers}) == 1
    assert accused(copy.path, plain.vault) == ["of ties"]


def test_the_weights_in_another_form_are_not_handed_on_and_are_named(plain, tmp_path):
    model = save_plain(tmp_path / "both", plain_arrays(6), README_md="# hi")
    (model / "onnx").mkdir()
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"):
        (model / name).write_bytes(b"unmarked weights")

    copy = issue(model, "of both", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert sorted(bytes_of(copy.path)) == ["README.md", "model.safetensors"]
    assert [name for name, _ in copy.left_out] == ["onnx/model.onnx", "pytorch_model.bin", "tf_model.h5"]


def test_nothing_that_was_lying_around_is_in_a_copy_and_each_is_named(plain, tmp_path):
    model = save_plain(tmp_path / "littered", plain_arrays(7), README_md="# hi", config_json="{}")
    reasons = write_unsafe_files(model)

    copy = issue(model, "of litter", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    found = bytes_of(copy.path)
    assert sorted(found) == ["README.md", "config.json", "model.safetensors"]
    assert not [name for name, content in found.items() if CANARY in content]
    assert dict(copy.left_out) == reasons
    assert len(reasons) >= 20
    assert copy.to_dict()["left_out"] == [{"name": name, "reason": reason} for name, reason in copy.left_out]
    assert accused(copy.path, plain.vault) == ["of litter"]


def test_code_is_copied_on_request(plain, tmp_path):
    model = save_plain(tmp_path / "coded", plain_arrays(7))
    (model / "modeling_own.py").write_text("class Own: ...")

    without = issue(model, "without", plain.vault, tmp_path / "without", PLAIN_SETTINGS)
    coded = issue(model, "coded", plain.vault, tmp_path / "with", include_code=True)

    assert (names_in(without.path), [name for name, _ in without.left_out]) == (
        ["model.safetensors"],
        ["modeling_own.py"],
    )
    assert (names_in(coded.path), coded.left_out) == (["model.safetensors", "modeling_own.py"], ())


def test_a_sharded_base_keeps_its_shards_and_index(plain, tmp_path):
    arrays = plain_arrays(8)
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, (name, array) in enumerate(arrays.items()):
        shards[sorted(shards)[i % 2]][name] = array
    (tmp_path / "sharded").mkdir()
    for name, part in shards.items():
        save_file(part, tmp_path / "sharded" / name)
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))

    copy = issue(tmp_path / "sharded", "of shards", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    before, after = bytes_of(tmp_path / "sharded"), bytes_of(copy.path)
    assert before.keys() == after.keys()
    assert sorted(name for name in before if before[name] != after[name]) == sorted(shards)
    assert accused(copy.path, plain.vault) == ["of shards"]


def test_the_second_copy_builds_no_model_and_measures_nothing(plain, tmp_path, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a registered base is registered again")

    for name in ("make_measurable", "analyze_base", "search_amplitudes", "scan_weights"):
        monkeypatch.setattr(f"hf_fingerprint.registration.registering.{name}", never)
    for name in ("build_model", "measure_sensitivity"):
        monkeypatch.setattr(f"hf_fingerprint.registration.measuring.{name}", never)
    monkeypatch.setattr("hf_fingerprint.registration.content.digest_tensors", never)

    copy = issue(plain.model, "second", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert copy.new
    assert copy.base_id == plain.base.base_id


@pytest.mark.parametrize("change", [{"max_kl": 2e-4}, {"coalition": 4}, {"expected_recipients": 5}, {"alpha": 1e-5}])
def test_other_settings_for_a_known_base_are_refused(plain, tmp_path, change):
    with pytest.raises(CodeError, match=f"Base {plain.base.base_id} is registered with"):
        issue(plain.model, "other", plain.vault, tmp_path / "copy", replace(PLAIN_SETTINGS, **change))

    assert names_in(tmp_path) == []
    assert plain.vault.copies(recipient="other") == []


def test_a_base_that_changes_while_it_is_open_is_refused(plain, tmp_path):
    model = save_plain(tmp_path / "model", plain_arrays(9))
    with Issuer(model, plain.vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("before", tmp_path / "before")
        with (model / "model.safetensors").open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\0\0\0\0")

        with pytest.raises(CheckpointError, match="changed while it was open"):
            issuer.issue("after", tmp_path / "after")

    assert names_in(tmp_path) == ["before", "model"]
    assert plain.vault.copies(recipient="after") == []
    assert accused(tmp_path / "before", new_place(plain.vault, model)) == ["before"]


def new_place(vault: Vault, model: Path) -> Vault:
    """The vault, once a changed base is as it was."""
    save_file(plain_arrays(9), model / "model.safetensors", {"format": "pt"})
    return vault


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (os, "posix_fallocate", 1),
        (writer, "write_all", 1),
        (writer, "write_all", 2),
        (writer, "copy_file", 1),
        (writer, "copy_file", 3),
        (os, "fsync", 1),
        (os, "fsync", 4),
    ],
)
def test_a_full_disk_leaves_nothing_behind_and_the_same_call_completes_later(
    plain, tmp_path, monkeypatch, owner, name, call
):
    recipient, calls, original = f"full at {name} {call}", [], getattr(owner, name)

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(StorageError) as caught:
            plain.issuer.issue(recipient, tmp_path / "copy")

    assert str(caught.value).startswith(f"The disk of {tmp_path} is full: make room there")
    assert len(str(caught.value).splitlines()) == 1
    assert names_in(tmp_path) == []
    (begun,) = plain.vault.copies(recipient=recipient)
    assert begun.state == "begun"
    copy = plain.issuer.issue(recipient, tmp_path / "copy")
    (issued,) = plain.vault.copies(recipient=recipient)
    assert (issued.copy_id, issued.state) == (begun.copy_id, "issued") == (copy.copy_id, "issued")
    assert names_in(tmp_path) == ["copy"]
    assert accused(copy.path, plain.vault) == [recipient]


def test_a_copy_is_recorded_as_written_once_its_bytes_and_names_are_on_the_disk(plain, tmp_path, monkeypatch):
    synced, fsync, mark_written = [], os.fsync, Vault.mark_written

    def noting(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def checking(vault, record, copy_key, whole, **more):
        (partial,) = tmp_path.iterdir()
        assert {path for path in partial.rglob("*") if path.is_file()} <= set(synced)
        assert {partial, partial / "labels"} <= set(synced), "the folders were not synced, so a name may get lost"
        return mark_written(vault, record, copy_key, whole, **more)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Vault, "mark_written", checking)
    plain.issuer.issue("durable", tmp_path / "copy")

    assert tmp_path in synced


def test_a_disk_too_small_for_the_copy_is_refused_before_writing(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))

    with pytest.raises(StorageError, match="0 MB free and the copy needs"):
        plain.issuer.issue("no room", tmp_path / "copy")

    assert names_in(tmp_path) == []


def test_a_disk_that_fills_up_among_several_copies_leaves_no_partial_one(plain, tmp_path, monkeypatch):
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="is full"):
            list(plain.issuer.issue_all(["full 1", "full 2", "full 3"], tmp_path / "out"))

    assert names_in(tmp_path / "out") == []
    copies = list(plain.issuer.issue_all(["full 1", "full 2", "full 3"], tmp_path / "out"))
    assert [accused(copy.path, plain.vault) for copy in copies] == [["full 1"], ["full 2"], ["full 3"]]
    assert [len(plain.vault.copies(recipient=copy.recipient)) for copy in copies] == [1, 1, 1]


def test_a_caller_who_stops_among_several_leaves_no_partial_copy(plain, tmp_path):
    copies = plain.issuer.issue_all(["stop 1", "stop 2", "stop 3"], tmp_path / "out")

    assert next(copies).recipient == "stop 1"
    copies.close()

    assert [name for name in names_in(tmp_path / "out") if name.endswith(".partial")] == []
    for name in ("stop 1", "stop 2", "stop 3"):
        assert accused(plain.issuer.issue(name, tmp_path / "out" / name).path, plain.vault) == [name]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_the_tensors_name(plain, tmp_path, value):
    arrays = plain_arrays(10)
    arrays["blocks.2.mlp.fc1.weight"][7, 3] = value
    model = save_plain(tmp_path / "model", arrays)

    with pytest.raises(CarrierError, match=r"blocks\.2\.mlp\.fc1\.weight holds NaN or infinite weights"):
        issue(model, "x", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert names_in(tmp_path) == ["model"]


def test_a_model_too_small_for_a_mark_is_refused(plain, tmp_path):
    arrays = {f"layer{i}.weight": np.ones((8, 8), np.float32) for i in range(3)}

    with pytest.raises(CarrierError, match="too small"):
        issue(save_plain(tmp_path / "model", arrays), "x", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)

    assert names_in(tmp_path) == ["model"]


def test_a_model_without_weights_to_mark_is_refused(plain, tmp_path):
    arrays = {"norm.weight": np.ones(1000, np.float32), "ids": np.arange(100_000)}

    with pytest.raises(CarrierError):
        issue(save_plain(tmp_path / "model", arrays), "x", plain.vault, tmp_path / "copy", PLAIN_SETTINGS)


def test_a_locked_vault_issues(tmp_path):
    vault = new_vault(tmp_path / "vault")
    (tmp_path / "vault" / "identity.age").rename(tmp_path / "taken to a safe.age")

    copy = issue(save_plain(tmp_path / "model"), "alice", tmp_path / "vault", tmp_path / "copy", PLAIN_SETTINGS)

    assert copy.new
    assert not vault.unlocked


def test_a_missing_vault_is_refused_in_a_sentence(plain, tmp_path):
    with pytest.raises(VaultError, match="holds no vault"):
        issue(plain.model, "x", tmp_path / "nowhere", tmp_path / "copy")

    assert names_in(tmp_path) == []


def test_a_vault_inside_the_models_folder_is_not_copied_to_recipients(tmp_path):
    model = save_plain(tmp_path / "model", README_md="# hi")
    new_vault(tmp_path / "vault")
    vault = Vault(shutil.move(tmp_path / "vault", model / "vault"))

    with pytest.raises(FingerprintError, match="move the vault out of it"):
        issue(model, "alice", vault, tmp_path / "copy", PLAIN_SETTINGS)
    assert not (tmp_path / "copy").exists()


def test_copies_inside_the_models_folder_are_not_copied_to_later_recipients(plain, tmp_path):
    model = save_plain(tmp_path / "model", plain_arrays(11), README_md="# hi")
    try:
        issue(model, "alice", plain.vault, model / "copies" / "alice", PLAIN_SETTINGS)
        copy = issue(model, "bob", plain.vault, model / "copies" / "bob", PLAIN_SETTINGS)
    except FingerprintError:
        return  # refusing is as good
    assert sorted(bytes_of(copy.path)) == ["README.md", "model.safetensors"]


def test_a_copy_being_made_keeps_others_from_its_place(plain, tmp_path):
    with plain.issuer.prepare("slow", tmp_path / "copy") as finish:
        with pytest.raises(VaultError, match="is being issued by another process"):
            issue(plain.model, "slow", plain.vault, tmp_path / "copy")
        copy = finish()

    assert not issue(plain.model, "slow", plain.vault, tmp_path / "copy").new
    assert [c.copy_id for c in plain.vault.copies(recipient="slow")] == [copy.copy_id]


def test_a_prepared_copy_that_is_not_finished_is_discarded_and_resumed(plain, tmp_path):
    with plain.issuer.prepare("discarded", tmp_path / "copy"):
        assert names_in(tmp_path) != []
    assert names_in(tmp_path) == []
    (begun,) = plain.vault.copies(recipient="discarded")

    assert plain.issuer.issue("discarded", tmp_path / "copy").copy_id == begun.copy_id
    assert accused(tmp_path / "copy", plain.vault) == ["discarded"]


@pytest.mark.parametrize("what", ["a file", "a folder with a file"])
def test_a_place_taken_while_the_copy_is_made_is_an_error_in_a_sentence(plain, tmp_path, what):
    out, recipient = tmp_path / "copy", f"overtaken by {what}"
    with plain.issuer.prepare(recipient, out) as finish:
        if what == "a file":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "notes.txt").write_text("mine")

        with pytest.raises(FingerprintError, match="copy"):
            finish()

    assert (out if what == "a file" else out / "notes.txt").read_text() == "mine"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    copy = plain.issuer.issue(recipient, out)
    assert names_in(tmp_path) == ["copy"]
    assert accused(copy.path, plain.vault) == [recipient]


def test_a_timm_base_is_issued_as_a_folder_that_timm_and_transformers_load(plain, tmp_path):
    import timm
    import torch
    from transformers import AutoModelForImageClassification

    model = save_timm(tmp_path / "model", "test_vit")
    config = json.loads((model / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # timm 1.0.31 repeats it there, and transformers passes it twice
    (model / "config.json").write_text(json.dumps(config))

    copy = issue(model, "alice", plain.vault, tmp_path / "copy", SETTINGS)

    images = torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    original = timm.create_model(f"local-dir:{model}", pretrained=True).eval()
    loaded = timm.create_model(f"local-dir:{copy.path}", pretrained=True).eval()
    wrapped = AutoModelForImageClassification.from_pretrained(copy.path).eval()
    changed = {n for (n, a), b in zip(original.named_parameters(), loaded.parameters(), strict=True) if (a != b).any()}
    assert len(changed) == 24
    with torch.no_grad():
        before, after = original(images).log_softmax(-1), loaded(images).log_softmax(-1)
        assert torch.allclose(wrapped(images).logits.log_softmax(-1), after, atol=1e-3)
    assert not torch.equal(before, after)
    assert (before.exp() * (before - after)).sum(-1).mean() < 2e-4
    assert accused(copy.path, plain.vault) == ["alice"]


def test_a_transformers_base_is_issued_as_a_folder_that_transformers_loads(plain, tmp_path):
    import torch
    from transformers import AutoModelForImageClassification

    model = save_vit(tmp_path / "model")

    copy = issue(model, "bob", plain.vault, tmp_path / "copy", SETTINGS)

    original = AutoModelForImageClassification.from_pretrained(model).eval()
    loaded = AutoModelForImageClassification.from_pretrained(copy.path).eval()
    assert type(loaded).__name__ == "ViTForImageClassification"
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = original(images).logits, loaded(images).logits
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=0.05)
    assert accused(copy.path, plain.vault) == ["bob"]


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_convolutional_bases_are_issued_and_traced(plain, tmp_path, architecture):
    model = save_timm(tmp_path / "model", architecture)

    copies = [issue(model, name, plain.vault, tmp_path / name, SETTINGS) for name in ("one", "two")]

    assert [accused(copy.path, plain.vault) for copy in copies] == [["one"], ["two"]]
    old, new = tensor_bytes(model), tensor_bytes(copies[0].path)
    changed = {name for name in old if old[name] != new[name]}
    assert changed
    assert all("bn" not in name and name not in {"conv_stem.weight", "classifier.weight"} for name in changed)


def test_a_recipient_named_twice_gets_one_copy(plain, tmp_path):
    copies = list(plain.issuer.issue_all(["twice", "twice"], tmp_path / "out"))

    assert [copy.recipient for copy in copies] == ["twice"]
    assert len(plain.vault.copies(recipient="twice")) == 1


@pytest.mark.parametrize(
    "name", ["n" * 235, "漢" * 80, "n" * 255], ids=["235 bytes", "80 letters of three bytes", "255"]
)
def test_a_long_name_is_a_folders_and_finds_its_copy_again(plain, tmp_path, name):
    copies = [next(iter(plain.issuer.issue_all([name], tmp_path / "out"))) for _ in range(2)]

    assert copies[0].path == tmp_path / "out" / name
    assert [copy.new for copy in copies] == [True, False]
    assert accused(copies[0].path, plain.vault) == [name]


def test_a_name_is_one_however_it_is_spelled(plain, tmp_path):
    composed, apart = unicodedata.normalize("NFC", "Zoë Müller"), unicodedata.normalize("NFD", "Zoë Müller")
    assert composed != apart

    copies = [plain.issuer.issue(name, tmp_path / "copy") for name in (apart, composed, f" {apart} ")]

    assert [copy.new for copy in copies] == [True, False, False]
    assert {copy.recipient for copy in copies} == {composed}
    assert len(plain.vault.copies(recipient=apart)) == len(plain.vault.copies(recipient=composed + "  ")) == 1
    assert verify(tmp_path / "copy", apart, plain.vault).accused[0].recipient == composed
    assert len(list(plain.issuer.issue_all([apart, composed], tmp_path / "both"))) == 1


def test_a_name_that_is_on_record_with_a_blank_is_the_same_recipient(plain, tmp_path):
    copy = plain.issuer.issue("blanche", tmp_path / "copy")
    with plain.vault.connect() as connection, connection:  # as older versions recorded it
        connection.execute("UPDATE copies SET recipient = 'blanche ' WHERE copy_id = ?", (copy.copy_id,))

    assert [found.copy_id for found in plain.vault.copies(recipient="blanche")] == [copy.copy_id]
