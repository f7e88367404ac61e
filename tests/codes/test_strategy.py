import hashlib
import itertools

import numpy as np
import pytest
from scipy.stats import norm

from hf_fingerprint.codes import FairSigns, Tardos
from hf_fingerprint.codes.collusion import collude_at_positions
from hf_fingerprint.codes.strategy import CollusionStrategy, infer_strategy, log_likelihood_ratio, most_biased


SECRET = bytes(range(32))
CODE = Tardos(16384, 10, SECRET)
COPIES = 8
NOBODY = np.zeros(CODE.length, int)
MEANS = {
    "average": 2 * np.arange(COPIES + 1) / COPIES - 1,
    "min-max": np.array([-1, *[0] * (COPIES - 1), 1.0]),
    "median": np.sign(np.arange(COPIES + 1) - COPIES / 2),
    "minority": np.array([-1, 1, 1, 1, 0, -1, -1, -1, 1.0]),
}


def words(codebook, count):
    keys = [hashlib.sha256(f"recipient {i}".encode()).digest() for i in range(count)]
    return 2.0 * np.unpackbits(codebook.packed(keys), axis=1) - 1


def collusion(strategy, noise=0.2, scale=1.0):
    rng = np.random.default_rng(0)
    forged = collude_at_positions(strategy, words(CODE, COPIES), rng)
    return scale * (forged + noise * rng.standard_normal(CODE.length))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("strategy", MEANS)
def test_what_was_done_and_by_how_many_is_inferred(strategy, scale):
    found = infer_strategy(CODE, collusion(strategy, scale=scale), np.ones(CODE.length), NOBODY, 0)
    if strategy == "average":  # of how many an average is, noise hides
        assert found.unknown >= COPIES
        assert (np.diff(found.means) > 0).all()
    else:
        assert found.unknown == COPIES
        np.testing.assert_allclose(found.means * found.scale / scale, MEANS[strategy], atol=0.15)
        np.testing.assert_allclose(np.sqrt(found.variances) * found.scale / scale, 0.2, atol=0.1)


def test_a_random_pick_in_each_of_ten_weights_varies_where_copies_differ_and_not_where_they_agree():
    held = (words(CODE, COPIES) > 0).sum(axis=0)
    picked = np.random.default_rng(0).binomial(10, held / COPIES) / 5 - 1
    found = infer_strategy(CODE, picked, np.ones(CODE.length), NOBODY, 0)
    assert found.variances[0] < 0.02 < 0.05 < found.variances[found.unknown // 2] < 0.2


@pytest.mark.parametrize("strategy", MEANS)
def test_those_who_are_known_are_counted_in(strategy):
    held = (words(CODE, 5) > 0).sum(axis=0)
    found = infer_strategy(CODE, collusion(strategy), np.ones(CODE.length), held, 5)
    assert found.unknown == COPIES - 5
    np.testing.assert_allclose(found.means * found.scale, MEANS[strategy], atol=0.15)


def test_means_are_odd_and_variances_even():
    found = infer_strategy(CODE, collusion("random pick", 0.7), np.ones(CODE.length), NOBODY, 0)
    np.testing.assert_allclose(found.means, -found.means[::-1], atol=1e-9)
    np.testing.assert_allclose(found.variances, found.variances[::-1], rtol=1e-9)


def test_mass_is_the_weight_of_a_position():
    """Half the positions are only noise and have nearly no mass; some have none."""
    rng = np.random.default_rng(0)
    mass = rng.choice([1.0, 1e-4, 0.0], CODE.length)
    noise = np.divide(0.2, np.sqrt(mass), out=np.zeros(CODE.length), where=mass > 0)
    extracted = mass * (collusion("median", 0) + noise * rng.standard_normal(CODE.length))
    found = infer_strategy(CODE, extracted, mass, NOBODY, 0)
    assert abs(found.unknown - COPIES) <= 4
    ratio = log_likelihood_ratio(CODE, extracted, mass, NOBODY, found)
    np.testing.assert_array_equal(ratio[mass == 0], 0)
    assert np.abs(ratio[mass == 1e-4]).mean() < 0.2 * np.abs(ratio[mass == 1]).mean()


def test_the_ratio_is_that_of_all_that_the_others_could_hold():
    codebook = Tardos(64, 3, SECRET)
    rng = np.random.default_rng(0)
    extracted, held = rng.standard_normal(64), rng.integers(0, 3, 64)
    strategy = CollusionStrategy(
        3, 2.0, np.array([-1, -0.5, -0.1, 0.1, 0.5, 1]), np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1]), 0.0
    )
    p, likelihood = codebook.probability, np.zeros((2, 64))
    for bit, first, second in itertools.product((0, 1), repeat=3):
        chance = np.where(first, p, 1 - p) * np.where(second, p, 1 - p)
        x = held + bit + first + second
        likelihood[bit] += chance * norm.pdf(extracted / 2, strategy.means[x], np.sqrt(strategy.variances[x]))
    expected = np.log(likelihood[1] / likelihood[0]) / 2
    np.testing.assert_allclose(
        log_likelihood_ratio(codebook, extracted, np.ones(64), held, strategy), expected, rtol=1e-4, atol=1e-5
    )


def test_a_colluders_score_is_high_and_an_innocents_is_not():
    extracted, mass = collusion("minority", 0.5), np.ones(CODE.length)
    found = infer_strategy(CODE, extracted, mass, NOBODY, 0)
    function = CODE.standardize(log_likelihood_ratio(CODE, extracted, mass, NOBODY, found)[None])[0]
    scores = (words(CODE, 60) - CODE.mean) @ function
    assert scores[:COPIES].min() > 15
    assert np.abs(scores[COPIES:]).max() < 4.5


@pytest.mark.parametrize("extracted", [np.zeros(1024), np.where(np.arange(1024) == 5, 1e30, 0.0)])
def test_a_signal_without_a_mark_has_no_strategy_or_a_finite_one(extracted):
    codebook, mass = Tardos(1024, 10, SECRET), np.ones(1024)
    found = infer_strategy(codebook, extracted, mass, np.zeros(1024, int), 0)
    assert found is None or np.isfinite(found.means).all()
    assert found is None or np.isfinite(log_likelihood_ratio(codebook, extracted, mass, NOBODY[:1024], found)).all()


def test_without_biases_nothing_is_inferred():
    codebook = FairSigns(1024)
    extracted = words(codebook, 3).mean(axis=0)
    assert infer_strategy(codebook, extracted, np.ones(1024), np.zeros(1024, int), 0) is None


def test_the_most_biased_positions_are_one_in_32():
    chosen = most_biased(CODE)
    assert len(chosen) == CODE.length // 32
    others = np.setdiff1d(np.arange(CODE.length), chosen)
    assert CODE.variance[chosen].max() <= CODE.variance[others].min()
