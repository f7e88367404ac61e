import numpy as np
import pytest

from hf_fingerprint.extraction.alignment.permutation_consensus import AxisOrder, axis_orders, find_consensus
from hf_fingerprint.extraction.alignment.weight_matching import ScaledPermutation


CHANNELS = 40


def side(name, order, confidence, axis=0):
    return AxisOrder(name, axis, np.array(order), np.array(confidence), CHANNELS)


def swapped(order, *places):
    """The order with some places permuted."""
    order = order.copy()
    order[list(places)] = np.roll(order[list(places)], 1)
    return order


def test_a_channel_that_one_layer_cannot_tell_stands_where_a_surer_one_has_it():
    order = np.random.default_rng(0).permutation(CHANNELS)
    doubtful = np.full(CHANNELS, 0.9)
    doubtful[[3, 8, 20]] = 0.05

    changed = find_consensus(
        [side("writes", order, np.full(CHANNELS, 0.95)), side("reads", swapped(order, 3, 8, 20), doubtful, axis=1)]
    )

    assert list(changed) == [("reads", 1)]
    assert changed["reads", 1].tolist() == order.tolist()


def test_orders_that_have_little_in_common_stay():
    rng = np.random.default_rng(0)
    one, two = (side(name, rng.permutation(CHANNELS), np.full(CHANNELS, 0.9)) for name in "ab")

    assert not find_consensus([one, two])


def test_layers_that_stayed_but_for_a_few_channels_each_are_not_one():
    confidence = np.full(CHANNELS, 0.95)
    one, other = swapped(np.arange(CHANNELS), 1, 2, 3), swapped(np.arange(CHANNELS), 30, 31)
    doubtful = confidence.copy()
    doubtful[[2, 3, 20, 21]] = 0.1

    changed = find_consensus(
        [
            side("one writes", one, confidence),
            side("another writes", other, confidence),
            side("one reads", swapped(one, 20, 21), doubtful, axis=1),
        ]
    )

    assert list(changed) == [("one reads", 1)]
    assert changed["one reads", 1].tolist() == one.tolist()


def test_what_stayed_in_most_places_stayed_in_those_in_doubt():
    doubtful = np.full(CHANNELS, 0.95)
    doubtful[[5, 6]] = 0.1

    changed = find_consensus([side("x", swapped(np.arange(CHANNELS), 5, 6), doubtful)])

    assert changed["x", 0].tolist() == list(range(CHANNELS))


def test_axes_are_as_confident_as_their_channels_are_similar():
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((6, 5, 1)).astype(np.float32)
    order = rng.permutation(6)
    theirs = ours[np.argsort(order)].copy()
    theirs[order[2]] = rng.standard_normal((5, 1))
    found = ScaledPermutation(order, np.arange(5), np.ones(6), np.ones(5))

    rows, columns = axis_orders("x", found, ours, theirs)

    assert (rows.axis, columns.axis, rows.suspect_size, columns.suspect_size) == (0, 1, 6, 5)
    assert np.delete(rows.confidence, 2) == pytest.approx(np.ones(5), abs=1e-6)
    assert rows.confidence[2] < 0.99
    alone = ScaledPermutation(order, np.arange(1), np.ones(6), np.ones(1))
    assert [each.axis for each in axis_orders("depthwise", alone, ours[:, :1], theirs[:, :1])] == [0]
