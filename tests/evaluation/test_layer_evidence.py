import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hf_fingerprint import Issuer
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.codes.decoding import prove_codeword
from hf_fingerprint.evaluation.layer_evidence import evidence_by_layer
from hf_fingerprint.extraction import extract
from hf_fingerprint.extraction.aligning import match_and_align
from tests.helpers.small_models import PLAIN_SETTINGS, save_plain, unlocked_vault


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """A base, its copy's folder and packed codeword."""
    root = tmp_path_factory.mktemp("layers")
    vault = unlocked_vault(root / "vault")
    with Issuer(save_plain(root / "model"), vault, PLAIN_SETTINGS) as issuer:
        copy = issuer.issue("alice", root / "copy")
    (codeword,) = issuer.base.codebook().packed(vault.copy_keys(vault.copies()))
    return issuer.base, root / "model", copy.path, codeword


def evidence(issued, place):
    base, model, _, codeword = issued
    with open_checkpoint(model) as original, open_checkpoint(place) as suspect:
        return evidence_by_layer(base, original, match_and_align(base, original, suspect), codeword)


def test_every_layer_of_a_copy_has_evidence_and_all_together_have_most(issued):
    base, model, copy, codeword = issued
    found = evidence(issued, copy)
    with open_checkpoint(model) as original, open_checkpoint(copy) as suspect:
        reading = extract(base, original, suspect)
    whole, _ = prove_codeword(base.codebook(), codeword, reading.values, reading.mass, 1, base.alpha)

    assert len(found) == len(base.carriers)
    assert min(found) > 4
    assert max(found) <= whole + 0.5


def test_a_layer_reset_to_the_base_has_no_evidence_and_the_others_keep_theirs(issued, tmp_path):
    base, model, copy, _ = issued
    first, second = base.carriers[0].name, base.carriers[1].name
    state = load_file(copy / "model.safetensors")
    state[first] = load_file(model / "model.safetensors")[first]
    del state[second]
    save_file(state, tmp_path / "model.safetensors")
    found, before = evidence(issued, tmp_path), evidence(issued, copy)

    assert found[0] == 0
    assert found[1] == 0
    assert np.allclose(found[2:], before[2:])


def test_a_stranger_has_no_evidence_anywhere(issued):
    base, model, copy, _ = issued
    stranger = np.packbits(np.random.default_rng(3).random(base.length) < base.codebook().probability)
    with open_checkpoint(model) as original, open_checkpoint(copy) as suspect:
        found = evidence_by_layer(base, original, match_and_align(base, original, suspect), stranger)

    assert max(map(abs, found)) < 6
