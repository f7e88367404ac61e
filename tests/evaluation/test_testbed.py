import math

import numpy as np
import pytest
import torch

from hf_fingerprint.attacks import ChannelPermutation, collude
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.evaluation import Testbed
from hf_fingerprint.evaluation import testbed as module
from hf_fingerprint.evaluation.layer_evidence import evidence_by_layer
from hf_fingerprint.evaluation.testbed import BINS
from hf_fingerprint.evaluation.throwaway import throwaway_vault
from hf_fingerprint.extraction.aligning import match_and_align
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import SETTINGS
from tests.helpers.small_models import save_plain


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def testbed(place, evaluation):
    """Three recipients, of whom the last is always innocent."""
    with Testbed(place / "model", place / "out", 3, SETTINGS, innocents=500) as opened:
        yield opened


def test_the_vault_is_for_its_owner_alone_and_its_passphrase_random(place, evaluation, testbed):
    (vault,) = (place / "out").glob("vault-*")
    passphrase = vault / "passphrase"

    assert vault.stat().st_mode & 0o777 == 0o700
    assert passphrase.stat().st_mode & 0o777 == 0o600
    assert len(passphrase.read_text().strip()) == 64


def test_the_same_testbed_is_found_again(place, evaluation, testbed):
    with Testbed(place / "model", place / "out", 2, SETTINGS) as again:
        assert again.base.base_id == testbed.base.base_id == evaluation.base["base"]
        assert all(torch.equal(a, b) for a, b in zip(again.copy(1).values(), testbed.copy(1).values(), strict=True))


def test_a_vault_that_was_half_made_is_made_anew(place, tmp_path, monkeypatch):
    with monkeypatch.context() as cut:
        cut.setattr("hf_fingerprint.vault.store.make_vault", None)
        with pytest.raises(TypeError):
            Testbed(place / "model", tmp_path, 1, SETTINGS)
    (half,) = tmp_path.glob("vault-*")
    kept = (half / "passphrase").read_text()

    assert throwaway_vault(half).unlocked
    assert (half / "passphrase").read_text() != kept


def test_copies_differ_from_the_base_and_from_one_another(testbed):
    base_state, one, two = testbed.base_state(), testbed.copy(0), testbed.copy(1)

    assert base_state.keys() == one.keys()
    assert sum(not torch.equal(base_state[name], one[name]) for name in base_state) >= len(testbed.base.carriers)
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_colluders_are_caught_and_a_recipient_outside_the_coalition_is_innocent(testbed):
    judged = testbed.trace_suspect(collude([testbed.copy(0), testbed.copy(1)]), (0, 1))

    assert judged.caught == (True, True)
    assert judged.innocents == 501
    assert judged.innocents_accused == 0
    assert judged.highest_innocent < judged.threshold < min(judged.scores)


@pytest.mark.parametrize("change", [dict, ChannelPermutation()])
def test_a_trial_aligns_a_suspect_once_and_its_layers_show_what_they_do_by_themselves(
    place, testbed, monkeypatch, change
):
    state, calls = change(testbed.copy(0)), []

    def noting(*arguments, **options):
        calls.append(match_and_align(*arguments, **options))
        return calls[-1]

    with monkeypatch.context() as patched:
        patched.setattr(module, "match_and_align", noting)
        judged = testbed.trace_suspect(state)
    (codeword,) = testbed.base.codebook().packed(testbed._keys[:1])
    with open_checkpoint(place / "model") as original, open_checkpoint(state, suspect=True) as suspect:
        found = match_and_align(testbed.base, original, suspect)
        layers = evidence_by_layer(testbed.base, original, found, codeword)

    assert len(calls) == 1
    assert (found.aligned > 0) == (change is not dict)
    assert judged.layers == layers
    assert min(layers) > 2


def test_with_wrong_colluders_the_true_one_counts_as_innocent(testbed):
    judged = testbed.trace_suspect(testbed.copy(0), (1,))

    assert judged.caught == (False,)
    assert judged.innocents_accused == 1
    assert judged.highest_innocent > judged.threshold


def test_the_bound_is_that_of_the_planned_recipients_however_many_are_scored(place, evaluation, testbed):
    with Testbed(place / "model", place / "out", 1, SETTINGS, innocents=20) as few:
        one, other = few.trace_suspect(few.copy(0)), testbed.trace_suspect(few.copy(0))

    assert math.isclose(one.threshold, other.threshold, rel_tol=1e-9)
    assert math.isclose(one.log10_bounds[0], other.log10_bounds[0], rel_tol=1e-9)
    recipients, rounds = 4, 10
    assert other.threshold <= math.sqrt(2 * math.log(recipients * rounds / 1e-6)) + 0.3


def test_a_suspect_that_is_the_base_accuses_nobody(testbed):
    judged = testbed.trace_suspect(testbed.base_state(), ())

    assert judged.scores == judged.caught == ()
    assert judged.innocents_accused == 0
    assert not np.any(judged.layers)


def test_the_histogram_has_everybody_and_the_ends_are_open(testbed):
    judged = testbed.trace_suspect(testbed.copy(0), (1,))  # with the true recipient far beyond the last bin

    assert sum(judged.histogram) == judged.innocents
    assert judged.histogram[-1] == 1
    assert BINS[0] + BINS[1] * BINS[2] < judged.highest_innocent


def test_channels_in_another_order_are_read_with_and_without_alignment(testbed):
    judged = testbed.trace_suspect(ChannelPermutation()(testbed.copy(0)))

    assert judged.aligned > 0
    assert judged.caught == (True,)
    assert judged.unaligned[0] == 0
    assert judged.unaligned[1] != judged.highest_innocent


def test_a_model_that_can_not_be_run_is_refused(tmp_path):
    text = refused(Testbed, save_plain(tmp_path / "plain"), tmp_path / "out", 1, SETTINGS)

    assert "config.json" in text
    assert not (tmp_path / "out").exists()
