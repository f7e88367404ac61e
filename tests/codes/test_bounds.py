import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from hf_fingerprint.codes.bounds import ChernoffBound, hoeffding_log_p


def biases(kind, length, rng):
    if kind == "fair":
        return np.full(length, 0.5)
    angle = math.asin(math.sqrt(1 / 3000))  # Tardos for 10
    return np.clip(np.sin(rng.uniform(angle, math.pi / 2 - angle, length)) ** 2, 2.0**-16, 1 - 2.0**-16)


def shape(kind, length, probability, rng):
    """Score functions as colluders could force them upon us, standardized."""
    h = rng.standard_normal(length)
    if kind == "heavy-tailed":
        h = rng.standard_cauchy(length)
    elif kind == "sparse":
        h *= rng.random(length) < 8 / length
        h[0] = 1
    elif kind == "against the rare bits":
        h = np.where(probability < 0.5, 1.0, -1.0)
    elif kind == "divided by the deviation":
        h /= 2 * np.sqrt(probability * (1 - probability))
    elif kind == "one":
        h = np.zeros(length)
        h[length // 2] = -2.5
    return standardized(h, probability)


def standardized(h, probability):
    return h / np.sqrt((h**2 * 4 * probability * (1 - probability)).sum())


SHAPES = ["dense", "heavy-tailed", "sparse", "against the rare bits", "divided by the deviation", "one"]


def innocents(h, probability, count, rng):
    """Scores of fresh innocents; positions where h is 0 say nothing and are not drawn."""
    used = h != 0
    h, p = h[used], probability[used]
    bits = rng.random((count, len(h)), dtype=np.float32) < p.astype(np.float32)
    return bits.astype(np.float32) @ (2 * h).astype(np.float32) - float(h @ (2 * p))


def exact_tail(h, probability):
    """All outcomes of a few positions: scores from low to high, and the probability of each score or a higher one."""
    h, probability = h[h != 0], probability[h != 0]
    bits = np.array(list(itertools.product([False, True], repeat=len(h))))
    outcome = np.where(bits, probability, 1 - probability).prod(axis=1)
    scores = (2.0 * bits - 1 - (2 * probability - 1)) @ h
    order = np.argsort(scores)
    scores, tail = scores[order], outcome[order][::-1].cumsum()[::-1]
    return scores, tail[np.searchsorted(scores, scores - 1e-9)]


@pytest.mark.parametrize("law", ["fair", "biased"])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_bound_is_at_least_the_exact_tail_and_not_far_from_it(law, kind):
    """All 4,096 outcomes of 12 positions: the tail of a dense function of fair signs is overstated at most tenfold."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        p = biases(law, 12, rng)
        h = shape(kind, 12, p, rng)
        scores, tail = exact_tail(h, p)
        bound = ChernoffBound(h, p).log_p(scores, at=-10.0)
        assert np.all(bound >= np.log(tail) - 1e-9)
        assert np.all(bound <= 0)
        high = scores > 0.5
        assert np.all(bound[high] <= np.log(tail[high]) + (9 if law == "biased" else 6))
        if kind == "dense" and law == "fair":
            assert np.all(bound[high] <= np.log(tail[high]) + math.log(10))
            assert bound.min() < -5


@pytest.mark.parametrize("law", ["fair", "biased"])
@pytest.mark.parametrize("kind", SHAPES)
def test_innocents_never_exceed_the_bound_in_simulation(law, kind):
    rng = np.random.default_rng([SHAPES.index(kind), law == "fair"])
    p = biases(law, 64, rng)
    h = shape(kind, 64, p, rng)
    count = 100_000
    scores = innocents(h, p, count, rng)
    levels = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0])
    expected = count * np.exp(ChernoffBound(h, p).log_p(levels, at=-14.0))
    seen = (scores[:, None] >= levels).sum(axis=0)
    assert np.all(seen <= expected + 5 * np.sqrt(expected) + 3)
    if kind != "one":
        assert seen[2] > 0.05 * expected[2]


def test_a_gaussian_approximation_would_accuse_innocents_where_the_bound_does_not():
    """Sixteen rare bits under equal weights: skew is what colluders would exploit."""
    p, count = np.full(16, 0.02), 200_000
    h = standardized(np.ones(16), p)
    scores = innocents(h, p, count, np.random.default_rng(0))
    level = np.float64(4.0)
    seen = int((scores >= level).sum())
    assert seen > 10 * count * norm.sf(level)
    assert seen <= count * math.exp(ChernoffBound(h, p).log_p(np.array([level]), at=-10.0)[0])


@given(st.floats(-700, -1), st.integers(0, 2**32), st.sampled_from(SHAPES))
def test_for_fair_signs_the_threshold_is_never_above_hoeffdings(log_p, seed, kind):
    rng = np.random.default_rng(seed)
    p = np.full(64, 0.5)
    threshold = ChernoffBound(shape(kind, 64, p, rng), p).threshold(log_p)
    assert threshold <= math.sqrt(-2 * log_p) * (1 + 1e-6)


def test_for_many_fair_signs_the_threshold_is_hoeffdings():
    """The figures of the design: 1 and 1,000 and a million recipients at alpha 1e-6 over 10 rounds."""
    h = np.random.default_rng(0).standard_normal(65536)
    p = np.full(65536, 0.5)
    bound = ChernoffBound(standardized(h, p), p)
    for recipients, figure in [(1, 5.7), (1_000, 6.8), (1_000_000, 7.7)]:
        log_p = math.log(1e-6 / (10 * recipients))
        assert bound.threshold(log_p) == pytest.approx(figure, abs=0.06)
        assert hoeffding_log_p(bound.threshold(log_p)) == pytest.approx(log_p, rel=1e-3)


@given(st.integers(0, 2**32), st.sampled_from(["dense", "heavy-tailed", "sparse"]))
def test_for_fair_signs_the_bound_is_no_worse_than_hoeffdings_but_for_a_hair(seed, kind):
    rng = np.random.default_rng(seed)
    p = np.full(64, 0.5)
    scores = np.linspace(1, 8, 15)
    bound = ChernoffBound(shape(kind, 64, p, rng), p).log_p(scores, at=-20.0)
    assert np.all(bound <= 0.97 * hoeffding_log_p(scores))


def test_hoeffdings_bound_holds_for_fair_signs_and_says_nothing_below_zero():
    np.testing.assert_allclose(hoeffding_log_p(np.array([-3.0, 0.0, 1.0, 6.0])), [0, 0, -0.5, -18])
    h = standardized(np.random.default_rng(0).standard_normal(12), np.full(12, 0.5))
    scores, tail = exact_tail(h, np.full(12, 0.5))
    assert np.all(hoeffding_log_p(scores) >= np.log(tail) - 1e-9)


@given(st.floats(-60, -2), st.integers(0, 2**32), st.sampled_from(["dense", "divided by the deviation", "sparse"]))
def test_the_threshold_is_where_the_bound_reaches_the_level(log_p, seed, kind):
    rng = np.random.default_rng(seed)
    p = biases("biased", 256, rng)
    bound = ChernoffBound(shape(kind, 256, p, rng), p)
    threshold = bound.threshold(log_p)
    below, at, above = bound.log_p(threshold + np.array([-1e-3, 0, 1e-3]), at=log_p)
    assert below > log_p
    assert at == pytest.approx(log_p, abs=1e-6)
    assert above < log_p


def test_the_threshold_is_the_least_that_any_exponent_proves():
    """Against a search over a grid of s so fine that no optimizer is needed."""
    for seed, log_p in itertools.product(range(3), (-5.0, -20.0, -80.0)):
        rng = np.random.default_rng(seed)
        p = biases("biased", 256, rng)
        h = shape("dense", 256, p, rng)
        s = np.geomspace(0.1, 100, 4000)[:, None]
        cumulant = (np.log(p * np.exp(2 * s * h * (1 - p)) + (1 - p) * np.exp(-2 * s * h * p))).sum(axis=1)
        assert ChernoffBound(h, p).threshold(log_p) == pytest.approx(((cumulant - log_p) / s[:, 0]).min(), rel=1e-5)


@given(st.integers(0, 2**32), st.sampled_from(SHAPES))
@settings(max_examples=50)
def test_higher_scores_never_prove_less(seed, kind):
    rng = np.random.default_rng(seed)
    p = biases("biased", 64, rng)
    bound = ChernoffBound(shape(kind, 64, p, rng), p).log_p(np.linspace(-5, 30, 200), at=-20.0)
    assert np.all(np.diff(bound) <= 0)
    assert bound[0] == 0


def test_stricter_levels_have_higher_thresholds():
    rng = np.random.default_rng(0)
    p = biases("biased", 256, rng)
    bound = ChernoffBound(shape("dense", 256, p, rng), p)
    thresholds = [bound.threshold(log_p) for log_p in (-2.0, -5.0, -10.0, -20.0, -50.0)]
    assert np.all(np.diff(thresholds) > 0.3)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_score_no_innocent_can_reach_is_never_demanded_by_much(kind):
    """The threshold tends to the highest possible score and stays finite, however strict the level."""
    rng = np.random.default_rng(3)
    p = biases("biased", 12, rng)
    h = shape(kind, 12, p, rng)
    highest = exact_tail(h, p)[0][-1]
    threshold = ChernoffBound(h, p).threshold(-2000.0)
    assert highest <= threshold < highest + 1


@pytest.mark.parametrize("law", ["fair", "biased"])
def test_extreme_scores_get_finite_bounds_and_no_warning(law, recwarn):
    rng = np.random.default_rng(0)
    p = biases(law, 4096, rng)
    bound = ChernoffBound(shape("divided by the deviation", 4096, p, rng), p)
    scores = np.array([-1e6, -64.0, 0.0, 64.0, 200.0, 1e4, 1e6])
    logs = bound.log_p(scores, at=-30.0)
    assert np.all(np.isfinite(logs))
    assert logs[0] == logs[1] == logs[2] == 0
    assert logs[3] < -500
    assert not recwarn.list


def test_a_score_of_minus_infinity_proves_nothing():
    p = np.full(64, 0.5)
    bound = ChernoffBound(standardized(np.ones(64), p), p)
    logs = bound.log_p(np.array([-np.inf, 7.0]), at=-20.0)
    assert logs[0] == 0
    assert logs[1] < -20


def test_a_function_of_zeros_never_accuses():
    bound = ChernoffBound(np.zeros(64), np.full(64, 0.5))
    assert bound.threshold(-5.0) == math.inf
    np.testing.assert_array_equal(bound.log_p(np.array([0.0, 5.0, 1e9]), at=-5.0), 0)


def test_no_scores_get_no_bounds():
    assert ChernoffBound(np.ones(64) / 8, np.full(64, 0.5)).log_p(np.empty(0), at=-5.0).shape == (0,)


@given(st.floats(0, 1e5), st.integers(0, 2**32), st.sampled_from(SHAPES))
def test_the_cumulant_is_never_less_than_the_exact_one(s, seed, kind):
    """Where exp would overflow it may be more, so the bound stays a bound."""
    rng = np.random.default_rng(seed)
    p = biases("biased", 16, rng)
    h = shape(kind, 16, p, rng)
    exact = np.logaddexp(np.log(p) + 2 * s * h * (1 - p), np.log1p(-p) - 2 * s * h * p).sum()
    cumulant = ChernoffBound(h, p).cumulant(s)
    assert cumulant >= exact - 1e-9 * (1 + s)
    if 2 * s * np.abs(h).max() < 50:
        assert cumulant == pytest.approx(exact, abs=1e-9)
