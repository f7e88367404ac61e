"""A factor that all weights of a tensor share takes nothing of the mark."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.tensor_place import TensorPlace
from hf_fingerprint.extraction.weigh import extract_tensor
from tests.extraction.test_weigh import NAME, case, drifted, trained_after_pruning  # noqa: F401


def read(case, theirs, tmp_path):  # noqa: F811
    """What is extracted of the suspect's weights, and the scale that is found."""
    save_file({"x": theirs.astype(np.float32)}, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        found = extract_tensor(case.base, case.carrier, case.original, suspect, suspect.tensors["x"])
        return found, found.scale


def similarity(one, other):
    return float(one @ other / np.sqrt(float(one @ one) * float(other @ other)))


@pytest.mark.parametrize("factor", [0.1, 0.3, 0.75, 0.95, 1.2, 3.0])
@pytest.mark.parametrize("size", [0.0, 2.0])
def test_weights_that_decayed_show_as_much_as_before(case, tmp_path, factor, size):  # noqa: F811
    suspect = drifted(case, size)
    before, _ = read(case, suspect, tmp_path)
    found, scale = read(case, factor * suspect, tmp_path)

    assert scale == pytest.approx(factor, rel=0.01)
    assert similarity(found.sums, before.sums) > 0.98
    assert found.weight == pytest.approx(before.weight, rel=0.1)
    assert found.coefficient == pytest.approx(min(factor, 1), rel=0.01)


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_drift_after_a_decay_is_what_counts(case, tmp_path, factor):  # noqa: F811
    suspect = factor * case.theirs + (drifted(case, 4.0) - case.theirs)
    same, _ = read(case, drifted(case, 4.0 / factor), tmp_path)
    found, scale = read(case, suspect, tmp_path)

    assert scale == pytest.approx(factor, rel=0.03)
    assert found.weight == pytest.approx(same.weight, rel=0.2)


def test_what_a_truncation_took_away_is_no_common_factor(case, tmp_path):  # noqa: F811
    left, values, right = np.linalg.svd(case.theirs, full_matrices=False)
    rank = len(values) // 4
    _, scale = read(case, (left[:, :rank] * values[:rank]) @ right[:rank], tmp_path)

    assert scale == 1


@pytest.mark.parametrize("change", ["verbatim", "drifted", "noise", "unrelated", "pruned", "gone", "absurd"])
def test_where_no_factor_matters_nothing_is_divided(case, tmp_path, change):  # noqa: F811
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(case.own.shape).astype(np.float32)
    theirs = {
        "verbatim": case.theirs,
        "drifted": drifted(case, 8.0),
        "noise": case.theirs + 3 * case.theirs.std() * noise,
        "unrelated": case.theirs.std() * noise,
        "pruned": np.where(rng.random(case.own.shape) < 0.7, 0, case.theirs),
        "gone": np.zeros_like(case.theirs),
        "absurd": np.where(rng.random(case.own.shape) < 0.1, np.float32(3e38), case.theirs),
    }[change]
    found, scale = read(case, theirs, tmp_path)

    assert scale == 1 and np.isfinite(found.sums).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.8])
def test_channels_that_did_not_shrink_are_left_as_they_are(case, tmp_path, share, side):  # noqa: F811
    """They show the mark as before. A factor that others share would bury it."""
    shrank = np.random.default_rng(5).random(case.own.shape[side]) < share
    factors = np.where(shrank, 0.9, 1)
    _, scale = read(case, case.theirs * (factors if side else factors[:, None]), tmp_path)

    assert scale == 1


@pytest.mark.parametrize("share", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("size", [0.0, 0.5, 5])
def test_weights_pruned_before_training_did_not_shrink(case, tmp_path, share, size):  # noqa: F811
    _, scale = read(case, trained_after_pruning(case, share, size)[0], tmp_path)

    assert scale == 1


@pytest.mark.filterwarnings("error")
def test_absurd_weights_among_those_that_shrank_do_no_harm(case, tmp_path):  # noqa: F811
    theirs = 0.1 * case.theirs
    before, _ = read(case, theirs, tmp_path)
    theirs[3, 5:8] = 1e38, -1e38, np.nan
    found, scale = read(case, theirs, tmp_path)

    assert scale == pytest.approx(0.1, rel=0.01)
    assert similarity(found.sums, before.sums) > 0.99


def test_a_rescaled_suspect_is_read_from_its_own_file_again(case, tmp_path):  # noqa: F811
    """The scale is the tensor's own: a reader of the place sees the base's weights, wherever they are read."""
    save_file({"x": 0.5 * case.theirs}, tmp_path / "suspect.safetensors")
    with open_checkpoint(tmp_path / "suspect.safetensors") as suspect:
        base_info = case.original.tensors[NAME]
        rows = slice(0, base_info.rows)
        parts = case.base, case.carrier, case.original, base_info, suspect, suspect.tensors["x"], None, rows
        place = replace(TensorPlace(*parts), scale=0.5)

        assert np.array_equal(place.load_pair(slice(0, 2))[1], case.theirs[:2])
        assert np.allclose(place.load_sample([1])[1][0], case.theirs[1])
