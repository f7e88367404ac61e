"""Nobody is cleared where a copy, drifted as far as the suspect, would not be accused."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hf_fingerprint import Outcome, trace
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.checkpoints.row_samples import sample_row_indices
from hf_fingerprint.extraction import extract
from hf_fingerprint.tracing.detection import carrier_mass, drifted_copy_score, would_detect_copy, would_show_copy
from tests.helpers.small_models import issue_plain, plain_arrays


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A base, open, its weights, those of a copy, and the vault, unlocked."""
    root = tmp_path_factory.mktemp("case")
    plain = issue_plain(root)
    with open_checkpoint(plain.model) as original:
        yield SimpleNamespace(**plain._asdict(), original=original, root=root)


def carriers(case):
    return [carrier.name for carrier in case.base.carriers]


def white(case, arrays, size, seed=1):
    """The arrays with noise of this size, in units of each carrier's standard deviation."""
    rng = np.random.default_rng(seed)
    moved = {n: size * arrays[n].std() * rng.standard_normal(arrays[n].shape) for n in carriers(case)}
    return arrays | {name: (arrays[name] + change).astype(np.float32) for name, change in moved.items()}


def colored(case, arrays, size, seed=1):
    """The arrays with a change of rank 2 in each carrier, as training makes it."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in carriers(case):
        values = arrays[name].reshape(len(arrays[name]), -1)
        change = rng.standard_normal((len(values), 2)) @ rng.standard_normal((2, values.shape[1]))
        found[name] = (values + size * values.std() * change / change.std()).reshape(arrays[name].shape)
    return arrays | {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def traced(case, arrays):
    path = case.root / "suspect.safetensors"
    save_file(arrays, path)
    return trace(path, case.vault, all_scores=True)


def predicted(case, arrays):
    """How a copy would score in the place of these weights, and whether it would be accused."""
    path = case.root / "suspect.safetensors"
    save_file(arrays, path)
    with open_checkpoint(path, suspect=True) as suspect:
        given = case.base, extract(case.base, case.original, suspect), 1, 1e-6
        return drifted_copy_score(*given), would_show_copy(*given)


@pytest.mark.parametrize(("drift", "size"), [(white, 0), (white, 0.01), (white, 0.03), (white, 0.06), (colored, 1)])
def test_the_base_tells_how_a_copy_scores_that_drifted_as_far(case, drift, size):
    score, _ = predicted(case, drift(case, case.own, size))
    (copy,) = traced(case, drift(case, case.copy, size)).scores

    assert score == pytest.approx(copy.score, rel=0.25)


@pytest.mark.parametrize("size", [0.02, 0.05, 0.07, 0.1, 0.3, 1.0])
def test_where_a_copy_would_not_show_the_base_is_not_readable(case, size):
    base, copy = (traced(case, white(case, arrays, size, seed=2)) for arrays in (case.own, case.copy))

    assert base.lineage.descends
    assert base.outcome is (Outcome.NOBODY if size < 0.04 else Outcome.NOT_READABLE)
    assert copy.outcome is Outcome.ACCUSED or copy.outcome is base.outcome is Outcome.NOT_READABLE
    if base.outcome is Outcome.NOT_READABLE:
        assert f"by {base.lineage.drift:.0%} of their norm" in base.reason
        assert "a verbatim copy that moved as far would score about" in base.reason


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_weights_that_did_not_move_are_too_few_rather_than_too_far_from_the_base(case, rows):
    name = "blocks.0.attn.qkv.weight"

    result = traced(case, {name: case.own[name] * (np.arange(144) < rows)[:, None]})

    assert result.outcome is Outcome.NOT_READABLE
    assert f"{6912 - 48 * rows:,} of the 6,912 weights that may hold a mark are exactly 0" in result.reason


def test_drift_in_few_directions_still_clears_the_base(case):
    assert traced(case, colored(case, case.own, 1)).outcome is Outcome.NOBODY


def test_what_replaces_a_base_is_no_drift(case):
    """Noise of ten times the weights: what is left of a mark shrinks with what is left of the base."""
    assert predicted(case, white(case, case.own, 10))[0] < 1
    assert predicted(case, plain_arrays(7)) == (0.0, False)


def test_a_verbatim_copy_shows_in_all_of_a_base_and_in_nothing_of_it(case):
    whole = carrier_mass(case.base, carriers(case))

    assert whole.sum() == case.base.carrier_weights
    assert would_detect_copy(case.base, whole, 1000, 1e-6)
    assert not would_detect_copy(case.base, np.zeros_like(whole), 1000, 1e-6)


def test_rows_that_a_sample_compares_clear_nobody(case):
    """Of each tensor, every row that may be sampled is the base's, and the others are a copy's in another order."""
    rng, suspect = np.random.default_rng(0), dict(case.own)
    for name in carriers(case):
        shown = sample_row_indices(len(case.own[name]), 16) + sample_row_indices(len(case.own[name]), 8)
        hidden = np.setdiff1d(np.arange(len(case.own[name])), shown)
        suspect[name] = case.own[name].copy()
        suspect[name][hidden] = case.copy[name][rng.permutation(hidden)][:, rng.permutation(case.own[name].shape[1])]

    result = traced(case, suspect)

    assert result.outcome is Outcome.NOT_READABLE
    assert "others have the shapes of its marked tensors" in result.reason


@given(st.floats(0, 0.03), st.integers(0, 9))
def test_few_positions_are_never_enough(case, share, seed):
    """Fewer than 62 positions of 2,048, when each says a bit at most: too few for 10^-19 and a thousand recipients."""
    mass = (np.random.default_rng(seed).random(case.base.length) < share).astype(float)
    assert not would_detect_copy(case.base, mass, 1000, 1e-19) or mass.sum() > 60


def test_more_recipients_and_a_smaller_alpha_need_more(case):
    rng = np.random.default_rng(0)
    masses = [(rng.random(case.base.length) < share).astype(float) for share in (0.01, 0.03, 0.1, 0.3, 1)]
    for recipients, alpha in ((1, 0.05), (1000, 1e-6), (10**6, 1e-12)):
        shown = [would_detect_copy(case.base, mass, recipients, alpha) for mass in masses]
        assert shown == sorted(shown)
        assert shown[-1]
    assert not would_detect_copy(case.base, masses[0], 10**6, 1e-12)
