"""Whether so much was answered that a verbatim copy can't have gone unseen."""

import math

import numpy as np
import pytest

from hf_fingerprint.blackbox.querying.e_process import Evidence
from hf_fingerprint.blackbox.querying.miss_probability import MISSED, log10_missed
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels, owned_questions


COPIES, CLASSES, SHARE = 2_000, 10, 0.5
KEYS = [i.to_bytes(32, "big") for i in range(COPIES)]


@pytest.mark.parametrize("alpha", [1e-3, 1e-6])
@pytest.mark.parametrize("told", [0.9, 0.6])
@pytest.mark.parametrize("answered", [12, 24, 40])
def test_so_many_verbatim_copies_are_missed(answered, told, alpha):
    """Each of 2,000 copies asked by itself, against what is counted exactly."""
    labels, owned = keyed_labels(KEYS, answered, CLASSES), owned_questions(KEYS, answered, SHARE)
    rng = np.random.default_rng(0)
    tells = owned & (rng.random(owned.shape) < told)
    missed = 0
    for i in range(COPIES):
        evidence = Evidence([KEYS[i]], answered, CLASSES, alpha / COPIES, SHARE)
        for question in range(answered):
            own = int(labels[i, question])
            evidence.hear(question, own if tells[i, question] else (own + 1) % CLASSES)
        missed += not len(evidence.accused())

    expected = 10 ** log10_missed(answered, SHARE, told, CLASSES, COPIES, alpha)
    assert missed / COPIES == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / COPIES) + 1e-3)


def test_the_usual_questions_are_enough_for_thousands_and_a_few_are_not():
    assert 10_000 * 10 ** log10_missed(160, 0.5, 0.9, 10, 10_000, 1e-6) < MISSED
    assert 10 ** log10_missed(12, 0.5, 0.9, 10, 1, 1e-6) > MISSED


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_nothing_or_next_to_nothing_answered_is_not_enough(answered):
    for classes in (2, 65_536):
        assert log10_missed(answered, 0.5, 0.9, classes, 1, 1e-6) == pytest.approx(0, abs=0.7)


def test_the_more_is_answered_the_fewer_are_missed():
    odds = [log10_missed(n, 0.5, 0.9, 10, 100, 1e-6) for n in range(10, 161, 10)]

    assert odds == sorted(odds, reverse=True) and odds[0] > -0.1 and odds[-1] < -9
    assert log10_missed(1 << 16, 1.0, 0.9, 2, 10**6, 5e-324) < -9
    assert log10_missed(160, 0.5, 0.0, 10, 100, 1e-6) == 0
