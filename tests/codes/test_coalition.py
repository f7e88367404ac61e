import hashlib
import math

import numpy as np
import pytest

from hf_fingerprint.codes import FairSigns, Tardos, coalition_by_formula, coalition_by_simulation, decode
from hf_fingerprint.codes.coalition import (
    accusation_threshold,
    count_accused_in_simulation,
    expected_score,
)
from hf_fingerprint.codes.collusion import POSITION_STRATEGIES, collude_at_positions
from hf_fingerprint.codes.residual import residual_signal


pytestmark = pytest.mark.integration


SECRET = bytes(range(32))
ALPHA = 1e-6
TARDOS = Tardos(4096, 10, SECRET)
FAIR = FairSigns(4096)
CODES = {"tardos": TARDOS, "fair_signs": FAIR}


def keys(count):
    return [hashlib.sha256(f"recipient {i}".encode()).digest() for i in range(count)]


def words(codebook, count):
    return 2.0 * np.unpackbits(codebook.packed(keys(count)), axis=1) - 1


def calculated(codebook, recipients=100, noise=0.3):
    return coalition_by_formula(codebook, recipients, ALPHA, noise)


def simulated(codebook, recipients=100, noise=0.3, limit=16):
    return coalition_by_simulation(codebook, recipients, ALPHA, noise, trials=1, limit=limit)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("average", [1, 1 / 3, -1 / 3, -1]),
        ("min-max", [1, 0, 0, -1]),
        ("median", [1, 1, -1, -1]),
        ("minority", [1, -1, 1, -1]),
    ],
)
def test_strategies_do_what_they_are_called(strategy, expected):
    """Three colluders, positions where 3, 2, 1 and 0 of them hold +1."""
    values = np.array([[1.0, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1]])
    np.testing.assert_allclose(collude_at_positions(strategy, values, np.random.default_rng(0)), expected)


def test_a_random_pick_takes_each_copys_value_equally_often():
    values = np.repeat([[1.0, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1]], 3000, axis=1)
    picked = collude_at_positions("random pick", values, np.random.default_rng(0)).reshape(4, 3000)
    assert set(np.unique(picked)) == {-1.0, 1.0}
    np.testing.assert_allclose((picked > 0).mean(axis=1), [1, 2 / 3, 1 / 3, 0], atol=0.05)


@pytest.mark.parametrize("strategy", POSITION_STRATEGIES)
@pytest.mark.parametrize("colluders", [1, 2, 5])
def test_every_strategy_keeps_what_all_colluders_agree_on(strategy, colluders):
    held = words(TARDOS, colluders)
    forged = collude_at_positions(strategy, held, np.random.default_rng(0))
    unanimous = np.abs(held.sum(axis=0)) == colluders
    assert unanimous.any()
    np.testing.assert_allclose(forged[unanimous], held[0, unanimous])
    assert np.all(np.abs(forged) <= 1 + 1e-12)


@pytest.mark.parametrize("family", CODES)
@pytest.mark.parametrize(("colluders", "noise"), [(1, 0.5), (3, 0.0), (5, 0.3), (10, 0.05)])
def test_the_expected_score_is_the_mean_score_of_those_who_average(family, colluders, noise):
    """Over 8 noises; the score is the first function's, centered by regression as the decoder does it."""
    codebook = CODES[family]
    held = words(codebook, colluders)
    scores = []
    for seed in range(8):
        noises = noise * np.random.default_rng(seed).standard_normal(4096)
        residual = residual_signal(codebook, held.mean(axis=0) + noises, np.ones(4096), np.empty((0, 4096)))
        function = codebook.standardize(codebook.score_functions(residual)[:1])
        scores.append((held - codebook.mean) @ function[0])
    assert np.mean(scores) == pytest.approx(expected_score(codebook, colluders, noise), rel=0.04)


def test_a_fair_code_read_without_noise_scores_the_root_of_its_length():
    assert expected_score(FAIR, 1, 0.0) == pytest.approx(64)
    assert expected_score(FAIR, 4, 0.0) == pytest.approx(32)


@pytest.mark.parametrize("family", CODES)
def test_the_expected_score_falls_with_colluders_and_noise(family):
    by_size = [expected_score(CODES[family], c, 0.3) for c in range(1, 12)]
    by_noise = [expected_score(CODES[family], 3, noise) for noise in (0, 0.1, 0.3, 1, 3)]
    assert np.all(np.diff(by_size) < 0)
    assert np.all(np.diff(by_noise) < 0)


def test_the_threshold_for_a_typical_signal_is_near_that_of_a_decoded_one():
    extracted = words(TARDOS, 1)[0] + 2 * np.random.default_rng(1).standard_normal(4096)
    decoded = decode(TARDOS, keys(100), extracted, np.ones(4096), ALPHA)
    assert accusation_threshold(TARDOS, 100, ALPHA) == pytest.approx(decoded.threshold, abs=0.5)


def test_the_threshold_for_fair_signs_is_near_hoeffdings():
    assert accusation_threshold(FAIR, 1000, ALPHA) == pytest.approx(math.sqrt(-2 * math.log(ALPHA / 1e4)), abs=0.05)


@pytest.mark.parametrize("family", CODES)
def test_more_recipients_and_a_stricter_alpha_raise_the_threshold(family):
    codebook = CODES[family]
    assert accusation_threshold(codebook, 100_000, ALPHA) > accusation_threshold(codebook, 100, ALPHA) + 0.5
    assert accusation_threshold(codebook, 100, 1e-12) > accusation_threshold(codebook, 100, ALPHA) + 0.5


@pytest.mark.parametrize("family", CODES)
def test_a_coalition_certified_by_formula_is_caught_when_it_averages_and_is_the_largest(family):
    codebook = CODES[family]
    certified = calculated(codebook)
    assert certified.size > 5
    assert count_accused_in_simulation(codebook, certified.size, "average", 100, ALPHA, 0.3, 0) == certified.size
    needed = accusation_threshold(codebook, 100, ALPHA) + 3
    assert expected_score(codebook, certified.size, 0.3) >= needed > expected_score(codebook, certified.size + 1, 0.3)


def test_a_coalition_certified_by_formula_is_never_larger_than_the_recipients():
    assert calculated(FAIR, recipients=3, noise=0.0).size == 3


@pytest.mark.parametrize("family", CODES)
def test_the_simulated_size_is_the_largest_whose_members_are_all_caught(family):
    codebook = CODES[family]
    size = simulated(codebook).size
    assert 0 < size < 16
    assert all(count_accused_in_simulation(codebook, size, s, 100, ALPHA, 0.3, 0) == size for s in POSITION_STRATEGIES)
    assert any(
        count_accused_in_simulation(codebook, size + 1, s, 100, ALPHA, 0.3, 0) <= size for s in POSITION_STRATEGIES
    )


def test_fair_signs_withstand_two_and_tardos_more():
    fair, tardos = simulated(FAIR, noise=0.0), simulated(TARDOS, noise=0.0)
    assert fair.size == 2
    assert tardos.size > 2 * fair.size
    assert count_accused_in_simulation(FAIR, 3, "minority", 100, ALPHA, 0.0, 0) == 0


@pytest.mark.parametrize("family", CODES)
def test_a_simulated_coalition_of_one_is_a_leak(family):
    assert all(count_accused_in_simulation(CODES[family], 1, s, 100, ALPHA, 0.3, 0) == 1 for s in POSITION_STRATEGIES)


@pytest.mark.parametrize("family", CODES)
@pytest.mark.parametrize("certify", [calculated, simulated])
def test_more_noise_and_more_recipients_never_certify_more(family, certify):
    codebook = CODES[family]
    by_noise = [certify(codebook, noise=noise).size for noise in (0.0, 0.3, 1.0, 3.0, 100.0)]
    by_recipients = [certify(codebook, recipients).size for recipients in (100, 10_000, 10_000_000)]
    assert np.all(np.diff(by_noise) <= 0)
    assert np.all(np.diff(by_recipients) <= 0)
    assert by_noise[0] > by_noise[-1] == 0


def test_longer_codes_certify_more():
    assert simulated(Tardos(1024, 10, SECRET)).size < simulated(TARDOS).size
    assert calculated(FairSigns(1024)).size < calculated(FAIR).size


def test_no_coalition_larger_than_the_limit_or_the_recipients_is_tried():
    assert simulated(TARDOS, limit=2).size == 2
    assert simulated(TARDOS, recipients=3).size == 3


def test_the_method_says_what_was_computed():
    formula, simulation = calculated(FAIR, noise=0.25).method, simulated(FAIR, noise=0.25).method
    assert "formula" in formula and "simulation" not in formula
    assert "simulation" in simulation and "formula" not in simulation
    assert "0.25" in formula and "0.25" in simulation
    assert "1 trials" in simulation
    assert all(strategy in simulation for strategy in POSITION_STRATEGIES)


def test_simulations_are_repeatable():
    first, again = (count_accused_in_simulation(TARDOS, 9, "median", 100, ALPHA, 1.0, 2) for _ in range(2))
    assert first == again
