import numpy as np
import pytest

from hf_fingerprint.extraction.alignment.duplicate_units import find_duplicate_units, first_duplicate_rows


def test_channels_that_carry_the_same_are_added_up():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((6, 50)).astype(np.float32)
    inputs[4], inputs[5] = -2 * inputs[1], 0

    merged = find_duplicate_units(inputs)
    summed = merged(np.ones((2, 6, 1), np.float32))

    assert merged.representatives.tolist() == [0, 1, 2, 3, 1, 5]
    assert summed[0, :, 0] == pytest.approx([1, 1 - 2, 1, 1, 0, 1])
    assert find_duplicate_units(inputs[:4]) is None


def still_or_rare(rng):
    """Channels 1 and 2 never move, 3 and 4 do in one sample, 5 and 6 are dead; 7 is 0 again."""
    inputs = np.zeros((8, 200), np.float32)
    inputs[0] = rng.standard_normal(200)
    inputs[1], inputs[2] = 6, 3
    inputs[3, 17], inputs[4, 17] = 2, 5
    inputs[7] = 0.5 * inputs[0]
    return inputs


def test_channels_that_stand_still_or_move_once_are_like_others_by_chance():
    inputs = still_or_rare(np.random.default_rng(0))

    assert find_duplicate_units(inputs).representatives.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert find_duplicate_units(inputs[:7]) is None


def test_of_those_the_layer_that_writes_them_tells():
    rng = np.random.default_rng(0)
    inputs = still_or_rare(rng)
    another, writer = rng.standard_normal((2, 8, 5, 1)).astype(np.float32)
    writer[7], writer[2], writer[6] = 0.5 * writer[0], writer[1], writer[5]
    another[4] = another[3]

    merged = find_duplicate_units(inputs, [another, writer])

    assert merged.representatives.tolist() == [0, 1, 1, 3, 4, 5, 5, 0]
    assert merged.factors == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.5])
    assert find_duplicate_units(inputs, [another]).representatives.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert find_duplicate_units(inputs[:7], [writer[:7]]) is None


def test_rows_that_are_multiples_of_one_another_are_the_first_of_them():
    rows = np.random.default_rng(0).standard_normal((5, 3, 2)).astype(np.float32)
    rows[3], rows[4] = 2 * rows[1], -rows[0]

    assert first_duplicate_rows(rows).tolist() == [0, 1, 2, 1, 4]
    assert first_duplicate_rows(np.zeros((3, 4, 1), np.float32)).tolist() == [0, 1, 2]
