"""With the ancestor, the mark is read from whatever was done to the copy's delta."""

import numpy as np
import pytest

from hf_fingerprint.extraction.ancestor_delta import read_delta


ROWS, COLUMNS, AMPLITUDE = 160, 120, 0.01


class Tuned:
    """An owner's delta and a mark, in the weights' own unit."""

    def __init__(self, seed=0, deltas=20.0):
        rng = np.random.default_rng(seed)
        shape = ROWS, COLUMNS
        directions = np.linspace(2, 0.2, COLUMNS)
        self.rng = rng
        self.mark = np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float32)
        self.owner = (AMPLITUDE * deltas * rng.standard_normal(shape) * directions).astype(np.float32)
        self.copy = self.owner + AMPLITUDE * self.mark
        self.inverse = np.full(ROWS, 1 / AMPLITUDE, np.float32)

    def plain(self, suspect):
        """How well the plain difference shows the mark."""
        return correlation((suspect - self.owner) * self.inverse[:, None], self.mark)

    def read(self, suspect):
        suspect = suspect.astype(np.float32)
        found = read_delta(suspect, self.owner, self.inverse, np.ones(suspect.shape, bool))
        return found if found is None else (found, correlation(found.values, self.mark * found.gains))


def correlation(one, other):
    return float(np.vdot(one, other) / np.sqrt(np.vdot(one, one) * np.vdot(other, other)))


def truncated(delta, rank, lessened=0.0):
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    return (left[:, :rank] * np.maximum(values[:rank] - lessened, 0)) @ right[:rank]


@pytest.mark.parametrize("lessened", [0.0, 0.5])
@pytest.mark.parametrize("rank", [3, 12, 40])
def test_a_truncated_delta_is_read_in_its_subspace(rank, lessened):
    tuned = Tuned()
    suspect = truncated(tuned.copy, rank, lessened)

    found, _ = tuned.read(suspect)

    assert found.is_projected
    share = (rank * (ROWS + COLUMNS - rank)) / (ROWS * COLUMNS)
    assert correlation(found.values * found.gains, tuned.mark) == pytest.approx(np.sqrt(share), rel=0.05)
    assert np.vdot(found.values * found.gains, tuned.mark) == pytest.approx(
        np.vdot(found.gains, found.gains), rel=0.15
    )


def test_a_truncated_delta_that_was_enlarged_is_read_in_its_subspace():
    """Training may add more along the owner's delta than the truncation took away."""
    tuned = Tuned()
    found, _ = tuned.read(5 * truncated(tuned.copy, 12))

    assert found.is_projected


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("idle", ["row", "column", "both"])
def test_idle_channels_hide_no_truncated_delta(idle, size):
    """Channels that nothing uses can be moved at will, and have the largest singular values then. Without one, the
    subspace of the other side is not quite known."""
    tuned = Tuned()
    suspect = truncated(tuned.copy, 40)
    _, match = tuned.read(suspect)
    for side in {"row": [suspect[9]], "column": [suspect[:, 7]], "both": [suspect[9], suspect[:, 7]]}[idle]:
        side += size * 30 * AMPLITUDE * np.sign(tuned.rng.standard_normal(len(side)))

    found, still = tuned.read(suspect)

    assert found.is_projected
    assert still > 0.35 * match


def test_of_a_part_of_the_rows_only_the_columns_space_is_read():
    tuned = Tuned()
    suspect = truncated(tuned.copy, 12)
    half = slice(0, ROWS // 2)
    part = read_delta(
        suspect[half].astype(np.float32),
        tuned.owner[half],
        tuned.inverse[half],
        np.ones((ROWS // 2, COLUMNS), bool),
        False,
    )

    assert part is not None and part.is_projected
    assert correlation(part.values * part.gains, tuned.mark[half]) == pytest.approx(np.sqrt(12 / COLUMNS), rel=0.1)


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("size", [1, 30, 1000])
@pytest.mark.parametrize("narrow", [False, True])
def test_drift_in_few_directions_is_not_taken_for_a_truncated_delta(rank, size, narrow):
    """Its claims would outweigh all other tensors'. Where most of the owner's delta is in few weights, what is outside
    of those directions varies by as little as a mark."""
    tuned = Tuned()
    if narrow:
        tuned.owner[:, COLUMNS // 8 :] *= 1e-3
        tuned.copy = tuned.owner + AMPLITUDE * tuned.mark
    kept = tuned.rng.random(tuned.copy.shape) < 0.01
    sides = tuned.rng.standard_normal((ROWS, rank)), tuned.rng.standard_normal((rank, COLUMNS))
    suspect = 100 * tuned.copy * kept + size * AMPLITUDE * (sides[0] @ sides[1])

    found = tuned.read(suspect)

    claimed = 0.0 if found is None else float(np.square(np.broadcast_to(found[0].gains, tuned.owner.shape)).sum())
    read = 0.0 if found is None else found[1] * np.sqrt(claimed)
    assert claimed < 100 or read > claimed / 4


CHANGES = {
    "scaled": lambda t: 0.3 * t.copy,
    "trimmed": lambda t: np.where(np.abs(t.copy) > np.quantile(np.abs(t.copy), 0.8), t.copy, 0),
    "thinned out": lambda t: 10 * t.copy * (t.rng.random(t.copy.shape) < 0.1),
    "reduced to signs": lambda t: np.abs(t.copy).mean() * np.sign(t.copy),
    "rounded": lambda t: np.round(t.copy / (40 * AMPLITUDE)) * 40 * AMPLITUDE,
}
GAIN = {"scaled": 3, "trimmed": 3, "thinned out": 3, "reduced to signs": 3, "rounded": 1.2}


@pytest.mark.parametrize("change", CHANGES)
def test_a_delta_that_was_changed_weight_by_weight_is_read_better_than_without_the_ancestor(change):
    tuned = Tuned()
    suspect = CHANGES[change](tuned)

    found, match = tuned.read(suspect)

    assert not found.is_projected
    assert match > GAIN[change] * abs(tuned.plain(suspect)) and match > 0.05


@pytest.mark.parametrize("change", ["ternary", "coarse grid"])
def test_channels_that_the_owner_did_not_tune_claim_nothing_once_they_were_reset(change):
    """Training moves only the others then: whether a weight was reset shows the channel, and no mark."""
    tuned = Tuned()
    dead = np.arange(COLUMNS) % 9 != 4
    tuned.owner[:, dead] *= 1e-4
    tuned.copy = tuned.owner + AMPLITUDE * tuned.mark
    size = np.abs(tuned.copy)
    step, least = (size.max(), 0.5 * size.max()) if change == "coarse grid" else (size[:, ~dead].mean(), 4 * AMPLITUDE)
    drift = AMPLITUDE * tuned.rng.standard_normal(size.shape) * np.where(dead, 1e-3, 1)
    found, _ = tuned.read(np.sign(tuned.copy) * step * (size > least) + drift)

    claimed = np.square(found.gains)
    assert claimed[:, dead].sum() < 0.05 * claimed[:, ~dead].sum()


def test_a_delta_of_which_little_is_left_is_read_for_what_it_shows():
    """Without the ancestor it would claim the whole mark, where most of it is gone, and outweigh other tensors."""
    tuned = Tuned()
    kept = np.abs(tuned.copy) > np.quantile(np.abs(tuned.copy), 0.98)
    drift = 40 * AMPLITUDE * tuned.rng.standard_normal(tuned.copy.shape)
    suspect = np.where(kept, tuned.copy, 0) + drift
    found, _ = tuned.read(suspect)

    claimed = np.square(found.gains).sum()
    claimed_without = tuned.mark.size / np.mean(np.square((suspect - tuned.owner) / AMPLITUDE))
    assert claimed < 0.3 * claimed_without


def test_a_delta_that_drifted_alone_is_not_read_with_the_ancestor():
    tuned = Tuned()

    assert tuned.read(tuned.copy + 5 * AMPLITUDE * tuned.rng.standard_normal(tuned.copy.shape)) is None


def test_weights_that_were_reset_to_the_ancestor_say_nothing():
    tuned = Tuned()
    reset = tuned.rng.random(tuned.copy.shape) < 0.6
    found, _ = tuned.read(np.where(reset, 0, tuned.copy))

    assert np.square(found.gains[reset]).mean() < 0.01 * np.square(found.gains[~reset]).mean()
    assert correlation(found.values[~reset], tuned.mark[~reset]) > 0.95


@pytest.mark.parametrize("change", ["truncated", *CHANGES])
def test_an_unmarked_base_treated_likewise_shows_no_mark(change):
    tuned = Tuned(deltas=20.0)
    unmarked = Tuned(deltas=20.0)
    unmarked.copy = unmarked.owner
    suspect = truncated(unmarked.copy, 12) if change == "truncated" else CHANGES[change](unmarked)
    found = unmarked.read(suspect)

    assert found is None or abs(correlation(found[0].values, tuned.mark)) < 4 / np.sqrt(ROWS * COLUMNS)


@pytest.mark.parametrize("suspect", [np.zeros((ROWS, COLUMNS)), np.full((ROWS, COLUMNS), 1e30)])
def test_absurd_deltas_do_no_harm(suspect):
    found = Tuned().read(suspect)

    assert found is None or (np.isfinite(found[0].values).all() and np.isfinite(found[0].gains).all())


def test_rows_without_amplitude_are_left_out():
    tuned = Tuned()
    tuned.inverse[5] = 0
    found, _ = tuned.read(0.5 * tuned.copy)

    assert not found.gains[5].any()
