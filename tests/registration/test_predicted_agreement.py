"""The extrapolated agreement is that of many more images, with a limit that holds."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_fingerprint.registration.predicted_agreement import predict_agreement
from tests.helpers.checkpoint_files import NO_DEADLINE


RUNS = 200


def groups_of(rng: np.random.Generator, images: int, scale: float, positions: int = 1) -> list[np.ndarray]:
    """The factors of decisions whose margins have a density of 1 at 0, for changes of this standard deviation."""
    margins = np.abs(rng.uniform(-1, 1, (images, positions)))
    changes = np.abs(scale * rng.standard_normal((images, positions)))
    return np.array_split(margins / changes, max(1, images // 8))


def reversed_share(scale: float) -> float:
    """Half the changes have the sign that reverses; one in `E |change|` margins is below its change."""
    return scale * np.sqrt(2 / np.pi) / 2


@pytest.mark.parametrize("images", [64, 250, 1000])
def test_the_share_of_reversed_decisions_is_extrapolated_and_its_limit_holds(images):
    rng, true = np.random.default_rng(images), 1 - reversed_share(0.01)

    found = np.array([predict_agreement(groups_of(rng, images, 0.01)) for _ in range(RUNS)])

    lost = 1 - found
    assert lost[:, 0].mean() == pytest.approx(1 - true, rel=0.15)
    assert lost[:, 0].std() < {64: 0.5, 250: 0.4, 1000: 0.2}[images] * (1 - true)
    counted = np.sqrt((1 - true) * true / images)  # of a count of reversed decisions
    assert lost[:, 0].std() < counted / 2
    assert (found[:, 1] <= true).mean() >= 0.95
    assert np.median(lost[:, 1] / lost[:, 0]) < {64: 2.3, 250: 1.8, 1000: 1.4}[images]


@NO_DEADLINE
@given(st.integers(1, 300), st.integers(1, 5), st.floats(1e-6, 10), st.integers(0, 2**32))
@example(107, 3, 7.0, 63)  # nearly every decision is reversed half of the time, and the stronger mark's share is surer
def test_a_stronger_mark_never_gets_a_better_prediction(images, positions, scale, seed):
    weak = groups_of(np.random.default_rng(seed), images, scale, positions)
    strong = [group / 2 for group in weak]

    (agreement, low), (worse, worse_low) = predict_agreement(weak), predict_agreement(strong)

    assert 0 <= worse <= agreement + 1e-12
    assert worse_low <= low + 1e-12 or agreement < 0.6
    assert low <= agreement <= 1
    if agreement > 0.99:  # far below the mark that reverses decisions: in proportion
        assert 1 - worse == pytest.approx(2 * (1 - agreement), rel=0.01) or worse < 0.99


def test_images_of_one_copy_count_as_one_where_they_change_together():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.uniform(-1, 1, (1000, 1)))
    apart = np.abs(0.01 * rng.standard_normal((1000, 1)))
    together = np.repeat(np.abs(0.01 * rng.standard_normal((10, 1))) ** 3 * 1e4, 100, axis=0)  # few copies change much

    sure = predict_agreement(np.array_split(margins / apart, 10))
    unsure = predict_agreement(np.array_split(margins / together, 10))

    assert (1 - unsure[1]) / (1 - unsure[0]) > 1.3 * (1 - sure[1]) / (1 - sure[0])


def test_an_output_that_does_not_change_keeps_all_decisions():
    assert predict_agreement([np.full((8, 1), np.inf)] * 4) == (1.0, 1.0)


def test_of_decisions_that_are_all_reversed_half_are_predicted_to_stay():
    agreement, low = predict_agreement([np.full((8, 1), 0.01)] * 4)

    assert agreement == 0.5
    assert low == 0.5
