"""Whether so much was answered that a verbatim copy can't have gone unseen."""

import math

import numpy as np
import pytest

from hf_fingerprint.blackbox.querying.e_process import EProcess
from hf_fingerprint.blackbox.querying.miss_probability import MAX_MISS_PROBABILITY, log10_miss_probability
from hf_fingerprint.blackbox.trigger_set.labels import assigned_triggers, keyed_labels


COPIES, CLASSES, SHARE = 2_000, 10, 0.5
KEYS = [i.to_bytes(32, "big") for i in range(COPIES)]


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
@pytest.mark.parametrize("recall", [0.9, 0.6])
@pytest.mark.parametrize("answered", [12, 24, 40])
def test_so_many_verbatim_copies_are_missed(answered, recall, alpha):
    """Each of 2,000 copies asked by itself, against what is counted exactly."""
    labels, assigned = keyed_labels(KEYS, answered, CLASSES), assigned_triggers(KEYS, answered, SHARE)
    rng = np.random.default_rng(0)
    tells = assigned & (rng.random(assigned.shape) < recall)
    missed = 0
    for i in range(COPIES):
        e_process = EProcess([KEYS[i]], answered, CLASSES, alpha / COPIES, SHARE)
        for trigger in range(answered):
            own = int(labels[i, trigger])
            e_process.update(trigger, own if tells[i, trigger] else (own + 1) % CLASSES)
        missed += not len(e_process.accused())

    expected = 10 ** log10_miss_probability(answered, SHARE, recall, CLASSES, COPIES, alpha)
    assert missed / COPIES == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / COPIES) + 1e-3)


def test_the_default_trigger_count_is_enough_for_thousands_and_a_few_are_not():
    assert 10_000 * 10 ** log10_miss_probability(160, 0.5, 0.9, 10, 10_000, 1e-6) < MAX_MISS_PROBABILITY
    assert 10 ** log10_miss_probability(12, 0.5, 0.9, 10, 1, 1e-6) > MAX_MISS_PROBABILITY


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_nothing_or_next_to_nothing_answered_is_not_enough(answered):
    for classes in (2, 65_536):
        assert log10_miss_probability(answered, 0.5, 0.9, classes, 1, 1e-6) == pytest.approx(0, abs=0.7)


def test_the_more_is_answered_the_fewer_are_missed():
    odds = [log10_miss_probability(n, 0.5, 0.9, 10, 100, 1e-6) for n in range(10, 161, 10)]

    assert odds == sorted(odds, reverse=True) and odds[0] > -0.1 and odds[-1] < -9
    assert log10_miss_probability(1 << 16, 1.0, 0.9, 2, 10**6, 5e-324) < -9
    assert log10_miss_probability(160, 0.5, 0.0, 10, 100, 1e-6) == 0
