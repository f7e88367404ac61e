import json
import os
import shutil
from contextlib import nullcontext

import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.registration import content
from hf_fingerprint.registration.content import has_hash, weights_hash
from tests.helpers.small_models import new_vault, plain_arrays, save_plain


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A vault, a model, and a list that grows by each hashing in full."""
    vault, model, hashed = new_vault(tmp_path / "vault"), save_plain(tmp_path / "model"), []

    def noting(checkpoint):
        hashed.append(checkpoint.source.name)
        return digest_tensors(checkpoint)

    monkeypatch.setattr(content, "digest_tensors", noting)

    def hash_of(path, vault=vault):
        with open_checkpoint(path) as checkpoint:
            return weights_hash(checkpoint, vault)

    return vault, model, hashed, hash_of


def test_the_hash_is_that_of_the_bytes(case):
    _, model, _, hash_of = case

    with open_checkpoint(model) as checkpoint:
        assert hash_of(model) == content_hash(checkpoint.tensors, digest_tensors(checkpoint))


def test_files_that_stand_still_are_hashed_once(case):
    _, model, hashed, hash_of = case

    assert len({hash_of(model) for _ in range(4)}) == 1
    assert hashed == [str(model)]


def test_each_vault_and_each_place_remembers_for_itself(case, tmp_path):
    _, model, hashed, hash_of = case
    shutil.copytree(model, tmp_path / "copy")

    first = hash_of(model)

    assert hash_of(model, new_vault(tmp_path / "another")) == first
    assert hash_of(tmp_path / "copy") == first
    assert hash_of(model / "model.safetensors") == first
    assert len(hashed) == 4


@pytest.mark.parametrize("how", ["in place", "in place, at the old time", "replaced", "replaced, at the old time"])
def test_a_change_of_one_byte_is_noticed(case, tmp_path, how):
    _, model, hashed, hash_of = case
    path = model / "model.safetensors"
    before, times = hash_of(model), path.stat()
    changed = path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
    if how.startswith("replaced"):
        (tmp_path / "new").write_bytes(changed)
        (tmp_path / "new").replace(path)
    else:
        with path.open("r+b") as stream:
            stream.write(changed)
    if how.endswith("old time"):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert hash_of(model) != before
    assert len(hashed) == 2


def test_a_file_touched_but_not_changed_is_hashed_again_and_is_the_same(case):
    _, model, hashed, hash_of = case
    before = hash_of(model)

    os.utime(model / "model.safetensors")

    assert hash_of(model) == before
    assert len(hashed) == 2


def test_a_changed_shard_is_noticed(case, tmp_path):
    _, _, hashed, hash_of = case
    arrays = plain_arrays()
    names = sorted(arrays)
    folder = tmp_path / "sharded"
    folder.mkdir()
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for shard, part in parts.items():
        save_file({name: arrays[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    whole = hash_of(folder)
    arrays[names[-1]] = arrays[names[-1]] + 1
    save_file({name: arrays[name] for name in names[9:]}, folder / "model-00002-of-00002.safetensors")

    assert hash_of(folder) != whole
    assert len(hashed) == 2


def test_shards_and_one_file_have_one_hash(case, tmp_path):
    _, model, _, hash_of = case
    arrays = plain_arrays()
    names = sorted(arrays)
    (tmp_path / "sharded").mkdir()
    for i, part in enumerate((names[:9], names[9:])):
        save_file(
            {name: arrays[name] for name in part}, tmp_path / "sharded" / f"model-0000{i + 1}-of-00002.safetensors"
        )
    weight_map = {name: f"model-0000{1 + (i >= 9)}-of-00002.safetensors" for i, name in enumerate(names)}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert hash_of(tmp_path / "sharded") == hash_of(model)


@pytest.mark.parametrize("fails", [False, True])
def test_a_checkpoint_with_other_weights_or_that_cannot_be_hashed_is_closed(case, monkeypatch, fails):
    vault, model, _, hash_of = case
    with open_checkpoint(model) as checkpoint:
        assert has_hash(checkpoint, vault, hash_of(model))
        checkpoint.read(checkpoint.tensors["head.weight"])

    checkpoint = open_checkpoint(model)
    if fails:
        monkeypatch.setattr(content, "digest_tensors", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        assert not has_hash(checkpoint, vault, "0" * 64)
    with pytest.raises(IndexError):  # no file is open
        checkpoint.read(checkpoint.tensors["head.weight"])
