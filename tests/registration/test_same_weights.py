"""The hash of a suspect is cached where that is safe, and copies on record are found by it."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint import FingerprintConfig, Issuer, trace
from hf_fingerprint.checkpoints import content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.registration import same_weights
from hf_fingerprint.registration.hash_cache import cache_hash, cached_hash
from hf_fingerprint.registration.same_weights import possible_hashes
from tests.helpers.small_models import save_plain, unlocked_vault


@pytest.fixture
def case(tmp_path, monkeypatch):
    """An unlocked vault, a copy in it, and a list that grows by each hashing in full."""
    vault, hashed = unlocked_vault(tmp_path / "vault"), []
    model = save_plain(tmp_path / "model")
    with Issuer(model, vault, FingerprintConfig(expected_recipients=10, amplitude=0.05)) as issuer:
        copy = issuer.issue("alice", tmp_path / "alice").path

    def noting(checkpoint):
        hashed.append(checkpoint.source.name)
        return digest_tensors(checkpoint)

    monkeypatch.setattr(same_weights, "digest_tensors", noting)
    return vault, copy, hashed


def test_a_suspect_is_hashed_once_until_it_changes(case):
    vault, copy, hashed = case

    for _ in range(2):
        result = trace(copy, vault)
        assert [each.recipient for each in result.on_record] == ["alice"]
    assert len(hashed) == 1

    (file,) = copy.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    before = file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not trace(copy, vault).on_record
    assert len(hashed) == 2


def test_a_view_of_a_file_neither_takes_nor_leaves_the_files_hash(case):
    vault, copy, hashed = case
    (base,) = vault.bases()
    with open_checkpoint(copy) as opened:
        names = {f"module.{name}": name for name in opened.tensors}
        view = RenamedCheckpoint(opened, names)
        whole = content_hash(opened.tensors, digest_tensors(opened))
        assert content_hash(view.tensors, digest_tensors(view)) != whole

        cache_hash(view, vault, "0" * 64)
        assert cached_hash(opened, vault) is None
        assert possible_hashes(opened, [base], vault=vault) == {whole}
        assert (cached_hash(opened, vault), cached_hash(view, vault)) == (whole, None)
        assert possible_hashes(opened, [base], vault=vault) == {whole}
        assert len(hashed) == 1
        assert whole in possible_hashes(view, [base], vault=vault)
        assert cached_hash(opened, vault) == whole


def test_a_model_of_another_layout_is_not_hashed(case, tmp_path):
    vault, _, hashed = case
    other = {"weight": np.ones((3, 3), np.float32)}
    save_file(other, tmp_path / "other.safetensors")
    with open_checkpoint(tmp_path / "other.safetensors") as opened:
        assert possible_hashes(opened, vault.bases(), vault=vault) == set()
    assert not hashed
