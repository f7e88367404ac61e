"""The further readings of a suspect reach what the plain one loses; which there are depends on no codeword."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction import extract
from hf_fingerprint.extraction import further_readings as module
from tests.helpers.small_models import issue_plain


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, its weights, those of a copy, the copy's codeword, and an ancestor's weights."""
    vault, base, model, own, marked = issue_plain(tmp_path_factory.mktemp("case"))
    rng = np.random.default_rng(0)
    amplitudes = {carrier.name: carrier.amplitude for carrier in base.carriers}
    ancestor = {
        name: weights - 20 * column(amplitudes[name], weights) * rng.standard_normal(weights.shape, np.float32)
        for name, weights in own.items()
        if name in amplitudes
    }
    with open_checkpoint(model) as original:
        codeword = base.codebook().codeword(vault.copy_keys(vault.copies())[0])
        yield SimpleNamespace(
            base=base, original=original, own=own, marked=marked, codeword=codeword, ancestor=ancestor, amps=amplitudes
        )


def column(amplitude, weights):
    return amplitude.reshape(-1, *[1] * (weights.ndim - 1))


def change(case, weights, how):
    """All carriers of some weights, each changed as a matrix."""
    found = dict(weights)
    for name in case.amps:
        matrix = weights[name].reshape(len(weights[name]), -1)
        found[name] = how(name, matrix).astype(np.float32).reshape(weights[name].shape)
    return found


def drifted(case, weights, rank=1, energy=100.0):
    rng = np.random.default_rng(1)

    def how(name, matrix):
        rows, columns = matrix.shape
        drift = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) * np.sqrt(energy / rank)
        return matrix + case.amps[name][:, None] * drift

    return change(case, weights, how)


def truncated(case, weights, share=0.15):
    def how(name, matrix):
        start = case.ancestor[name].reshape(matrix.shape)
        left, values, right = np.linalg.svd(matrix - start, full_matrices=False)
        rank = max(1, round(share * len(values)))
        return start + (left[:, :rank] * values[:rank]) @ right[:rank]

    return change(case, weights, how)


def read(case, weights, folder, with_ancestor=False):
    save_file(weights, folder / "suspect.safetensors")
    save_file(case.ancestor, folder / "ancestor.safetensors")
    with (
        open_checkpoint(folder / "suspect.safetensors") as suspect,
        open_checkpoint(folder / "ancestor.safetensors") as ancestor,
    ):
        return extract(case.base, case.original, suspect, ancestor=ancestor if with_ancestor else None)


def match(reading, codeword):
    """The correlation of a signal with a codeword, weighted by the masses."""
    used = reading.mass > 0
    scaled = reading.values[used] / np.sqrt(reading.mass[used])
    expected = np.sqrt(reading.mass[used]) * codeword[used]
    return float(scaled @ expected / np.sqrt((scaled @ scaled) * (expected @ expected)))


@pytest.mark.parametrize("with_ancestor", [False, True])
@pytest.mark.parametrize("what", ["copy", "base"])
def test_what_did_not_drift_has_the_plain_reading_alone(case, tmp_path, what, with_ancestor):
    weights = case.marked if what == "copy" else case.own
    assert list(read(case, weights, tmp_path, with_ancestor).readings) == ["plain"]


def test_white_drift_has_the_plain_reading_alone(case, tmp_path):
    rng = np.random.default_rng(2)
    noisy = change(case, case.marked, lambda name, m: m + 3 * case.amps[name][:, None] * rng.standard_normal(m.shape))

    assert list(read(case, noisy, tmp_path).readings) == ["plain"]


def test_drift_in_few_directions_is_whitened(case, tmp_path):
    readings = read(case, drifted(case, case.marked), tmp_path).readings

    assert list(readings) == ["plain", "whitened"]
    noise = {name: 1 - match(reading, case.codeword) ** 2 for name, reading in readings.items()}
    assert noise["whitened"] < 0.2 * noise["plain"]


def test_a_truncated_delta_is_read_with_the_ancestor(case, tmp_path):
    readings = read(case, truncated(case, case.marked), tmp_path, with_ancestor=True).readings

    assert match(readings["ancestor"], case.codeword) > 0.6
    assert match(readings["ancestor"], case.codeword) > 2 * abs(match(readings["plain"], case.codeword))


def coarsely_rounded(case, weights):
    """Each tensor's deltas on a grid of two bits."""

    def how(name, matrix):
        start = case.ancestor[name].reshape(matrix.shape)
        largest = np.abs(matrix - start).max()
        return start + np.round((matrix - start) / largest) * largest

    return change(case, weights, how)


def test_few_weights_that_show_the_mark_are_not_whitened(case, tmp_path, monkeypatch):
    """Whitening's gain is a mean over all weights, and takes far less of the others for theirs."""
    weights = coarsely_rounded(case, case.marked)
    found = read(case, weights, tmp_path, with_ancestor=True).readings["ancestor"]
    monkeypatch.setattr(module, "MIN_SPREAD", 0.0)
    whitened = read(case, weights, tmp_path, with_ancestor=True).readings["ancestor"]

    assert match(found, case.codeword) > 1.5 * match(whitened, case.codeword)
    assert found.mass.sum() < whitened.mass.sum()


@pytest.mark.parametrize("change_of", [drifted, truncated])
def test_an_unmarked_base_treated_likewise_shows_nothing(case, tmp_path, change_of):
    for name, reading in read(case, change_of(case, case.own), tmp_path, with_ancestor=True).readings.items():
        assert abs(match(reading, case.codeword)) < 5 / np.sqrt(case.base.length), name


def test_tensors_that_a_reading_cannot_be_made_of_count_as_in_the_one_before(case, tmp_path):
    one = next(iter(case.amps))
    weights = {**case.marked, one: drifted(case, case.marked)[one]}
    readings = read(case, weights, tmp_path).readings

    for reading in readings.values():
        assert match(reading, case.codeword) > 0.9
    rest = {name: array for name, array in weights.items() if name != one}
    without = read(case, rest, tmp_path)
    assert list(without.readings) == ["plain"]
    assert (readings["whitened"].mass >= without.mass - 1e-6).all()


def test_large_tensors_are_read_in_pieces(case, tmp_path, monkeypatch):
    whole = read(case, drifted(case, case.marked), tmp_path).readings["whitened"]
    monkeypatch.setattr(module, "MAX_GRAM_SIDE", 16)
    parts = read(case, drifted(case, case.marked), tmp_path).readings["whitened"]

    assert match(parts, case.codeword) > 0.6 * match(whole, case.codeword)


def test_a_tensor_without_a_mark_does_not_outweigh_the_others(case, tmp_path):
    """One in which drift in one direction is all there is, as an attacker can make of a tensor that was not tuned."""
    one = next(iter(case.amps))
    weights = {**drifted(case, case.marked), one: drifted(case, case.own, energy=1e4)[one]}

    assert match(read(case, weights, tmp_path).readings["whitened"], case.codeword) > 0.9


@pytest.mark.parametrize("absurd", [np.inf, np.nan, 3e38, 0.0])
def test_absurd_weights_do_no_harm(case, tmp_path, absurd):
    weights = drifted(case, case.marked)
    for name in case.amps:
        weights[name].reshape(-1)[::7] = absurd

    for reading in read(case, weights, tmp_path, with_ancestor=True).readings.values():
        assert np.isfinite(reading.values).all() and np.isfinite(reading.mass).all()
        assert (reading.mass >= 0).all()
