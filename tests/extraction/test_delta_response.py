"""The response to the owner's delta shows the mark wherever the delta was cut, and claims no more than is there."""

import numpy as np
import pytest

from hf_fingerprint.extraction.delta_response import read_response, usual_channels


AMPLITUDE = 0.01


class Case:
    """An owner's delta, the marks of some colluders, and their average's delta."""

    def __init__(self, seed=0, shape=(240, 400), ratio=8.0, colluders=1):
        self.rng = np.random.default_rng(seed)
        self.owner = (AMPLITUDE * ratio * self.rng.standard_normal(shape)).astype(np.float32)
        self.marks = [np.where(self.rng.random(shape) < 0.5, -1, 1) for _ in range(colluders)]
        self.copy = self.owner + AMPLITUDE * np.mean(self.marks, axis=0)
        self.inverse = np.full(shape[0], 1 / AMPLITUDE, np.float32)

    def read(self, suspect, mark=None):
        """The score of a mark, and the one that the gains claim for it."""
        suspect, kept = suspect.astype(np.float32), np.ones(suspect.shape, bool)
        rows, columns = usual_channels(suspect, self.owner, kept)
        values, gains = read_response(suspect, self.owner, self.inverse, rows[:, None] & columns)
        weighted = values * gains
        score = np.vdot(weighted, self.marks[0] if mark is None else mark) / np.linalg.norm(weighted)
        return float(score), float(np.linalg.norm(gains)) / len(self.marks)


def ternary(delta, threshold):
    size = np.abs(delta)
    kept = size > threshold * size.mean()
    return np.sign(delta) * kept * size[kept].mean()


def trimmed(delta, share):
    return delta * (np.abs(delta) > np.quantile(np.abs(delta), 1 - share))


def drift(case):
    return AMPLITUDE * case.rng.standard_normal(case.copy.shape)


CHANGES = {
    "ternary": lambda case: ternary(case.copy, 0.7),
    "signs": lambda case: np.sign(case.copy) * np.abs(case.copy).mean(),
    "trimmed": lambda case: trimmed(case.copy, 0.1),
    "grid": lambda case: np.round(case.copy / (8 * AMPLITUDE)) * 8 * AMPLITUDE,
    "thinned out": lambda case: 20 * case.copy * (case.rng.random(case.copy.shape) < 0.05),
    "few left": lambda case: 250 * case.copy * (case.rng.random(case.copy.shape) < 0.004),
    "few left, trained": lambda case: CHANGES["few left"](case) + drift(case),
    "coarse grid": lambda case: np.round(case.copy / np.abs(case.copy).max()) * np.abs(case.copy).max(),
    "coarse grid, trained": lambda case: CHANGES["coarse grid"](case) + drift(case),
    "trimmed, trained": lambda case: CHANGES["trimmed"](case) + drift(case),
    "noise": lambda case: case.copy + 3 * AMPLITUDE * case.rng.standard_normal(case.copy.shape),
}


FEW_SHOW_IT = {"few left", "few left, trained", "coarse grid", "coarse grid, trained"}


@pytest.mark.parametrize("colluders", [1, 10])
@pytest.mark.parametrize("change", CHANGES)
def test_the_gains_claim_what_is_read_within_a_factor_of_two(change, colluders):
    case = Case(colluders=colluders)
    score, claimed = case.read(CHANGES[change](case))

    assert score > (3 if colluders > 1 and change in FEW_SHOW_IT else 8)
    assert 0.5 < score / claimed < 2


@pytest.mark.parametrize("side", ["row", "column"])
@pytest.mark.parametrize("size", [1e2, 1e6])
@pytest.mark.parametrize("change", CHANGES)
def test_a_channel_that_nothing_uses_hides_no_other(change, size, side):
    case = Case()
    suspect = CHANGES[change](case)
    score, claimed = case.read(suspect)
    idle = suspect[7] if side == "row" else suspect[:, 7]
    idle[:] = size * case.owner.std() * case.rng.standard_normal(len(idle))
    hidden, still = case.read(suspect)

    assert hidden > 0.9 * score
    assert still == pytest.approx(claimed, rel=0.1)


@pytest.mark.parametrize("change", ["scaled", "trimmed", "coarse grid", "coarse grid, trained"])
def test_channels_that_were_tuned_are_usual_where_most_were_not(change):
    """Most input channels of a last layer may be dead: all of the owner's delta is in a few."""
    case = Case()
    dead = np.arange(case.owner.shape[1]) % 9 != 4
    case.owner[:, dead] *= 1e-3
    case.copy = case.owner + AMPLITUDE * case.marks[0]
    suspect = 0.9 * case.copy if change == "scaled" else CHANGES[change](case)

    for usual in usual_channels(suspect.astype(np.float32), case.owner, np.ones(suspect.shape, bool)):
        assert usual.all()


@pytest.mark.parametrize("threshold", [0.7, 1.4])
def test_a_ternary_delta_shows_the_mark_where_weights_are_reset(threshold):
    case = Case()
    suspect = ternary(case.copy, threshold)
    there = suspect != 0
    values, gains = read_response(suspect.astype(np.float32), case.owner, case.inverse, there)
    without = float(np.vdot(values * gains, case.marks[0]) / max(np.linalg.norm(values * gains), 1e-9))

    assert case.read(suspect)[0] > 3 * abs(without)


@pytest.mark.parametrize("change", CHANGES)
def test_another_mark_scores_as_chance_has_it(change):
    case = Case(colluders=2)
    others = [np.where(case.rng.random(case.owner.shape) < 0.5, -1, 1) for _ in range(20)]
    suspect = CHANGES[change](case)

    assert max(abs(case.read(suspect, mark)[0]) for mark in others) < 4


def test_taps_that_never_moved_claim_nothing():
    case = Case(shape=(200, 900))
    dead = np.arange(900) % 9 != 4
    case.owner[:, dead] *= 1e-3
    case.copy = case.owner + AMPLITUDE * case.marks[0]
    suspect = ternary(case.copy, 1.4).astype(np.float32)
    _, gains = read_response(suspect, case.owner, case.inverse, np.ones(suspect.shape, bool))

    assert np.square(gains[:, dead]).sum() < 0.05 * np.square(gains[:, ~dead]).sum()


def test_a_delta_that_only_drifted_is_left_to_the_other_readings():
    case = Case()
    suspect = case.copy + 3 * AMPLITUDE * case.rng.standard_normal(case.copy.shape)
    args = suspect.astype(np.float32), case.owner, case.inverse, np.ones(suspect.shape, bool)

    assert read_response(*args) is not None
    assert read_response(*args, least_gain=1.05) is None
