"""Signals of every size and shape, given to every public function that accuses."""

import hashlib
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from hf_fingerprint.codes import FairSigns, Nuida, Tardos, decode, decode_all, decoding, prove_codeword
from hf_fingerprint.codes.deepmarks.block_design import BlockDesign
from hf_fingerprint.codes.deepmarks.soft_decoding import soft_decode
from hf_fingerprint.codes.residual import is_unexplained, residual_signal
from hf_fingerprint.codes.signals import MAX_FLOAT, to_signal
from hf_fingerprint.codes.strategy import infer_strategy, log_likelihood_ratio
from hf_fingerprint.errors import CodeError


pytestmark = pytest.mark.integration


SECRET = bytes(range(32))
LENGTH, ALPHA = 256, 0.05
CODES = {
    "fair_signs": FairSigns(LENGTH),
    "tardos": Tardos(LENGTH, 3, SECRET),
    "tardos for many": Tardos(LENGTH, 1000, SECRET),
    "nuida": Nuida(LENGTH, 6, SECRET),
}
SCALES = [5e-324, 1e-310, 1e-200, 1e-162, 1e-155, 1e-30, 1e30, 1e155, 1e200, 1e307]
NOBODY = np.empty((0, LENGTH))


def keys(count, label="recipient"):
    return [hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(count)]


def words(codebook, copy_keys):
    return 2.0 * np.unpackbits(codebook.packed(copy_keys), axis=1) - 1


def scaled(values, scale):
    """Values times a scale, as large as numbers get."""
    with np.errstate(over="ignore"):
        return np.clip(values * scale, -MAX_FLOAT, MAX_FLOAT)


def shapes(codebook, seed):
    """Signals without a recipient's copy, and a mass for each."""
    rng = np.random.default_rng(seed)
    noise, ones = rng.standard_normal(LENGTH), np.ones(LENGTH)
    rare = np.argsort(codebook.variance, kind="stable")[rng.integers(0, 8)]
    sign = 1.0 if codebook.probability[rare] < 0.5 else -1.0
    at = np.arange(LENGTH) == rare
    other = words(codebook, keys(5, f"elsewhere {seed}"))
    huge = np.where(rng.random(LENGTH) < 0.02, 1e308, noise)
    uneven = 10.0 ** rng.uniform(-300, 300, LENGTH)
    half = (rng.random(LENGTH) < 0.5).astype(float)
    return {
        "noise": (noise, ones),
        "a rare position": (sign * at, ones),
        "a rare position among small ones": (np.where(at, sign * 1e200, noise), ones),
        "a rare position among denormals": (np.where(at, sign, 1e-320 * noise), ones),
        "the rarest": (np.where(codebook.variance < 0.1, -np.sign(codebook.mean), 0.0), ones),
        "a few huge": (huge, ones),
        "every size": (noise * 10.0 ** rng.uniform(-300, 300, LENGTH), ones),
        "denormal steps": (np.rint(2 * noise) * 5e-324, ones),
        "strangers": (other.mean(axis=0), ones),
        "a stranger": (other[0], ones),
        "a median of strangers": (np.sign(other.sum(axis=0)), ones),
        "the mean and hardly more": (codebook.mean + 1e-13 * noise, ones),
        "mass of every size": (noise * np.minimum(uneven, 1e200), uneven),
        "a huge mass": (noise, np.where(at, 1e308, 1.0)),
        "mass at one position": (noise, at.astype(float)),
        "half of it unread": (noise, half),
        "denormal mass": (1e-320 * noise, 1e-320 * ones),
        "nothing read": (noise, 0 * ones),
        "nothing there": (0 * noise, ones),
    }


@pytest.mark.parametrize("family", CODES)
@pytest.mark.parametrize("recipients", [1, 40])
def test_innocents_are_accused_no_more_often_than_promised_by_any_signal(family, recipients):
    """Each shape at each of several scales, against fresh keys each time, at the loosest level that accuses."""
    codebook, runs = CODES[family], 4
    wrong: dict[str, int] = {}
    total = 0
    for run in range(runs):
        for kind, (extracted, mass) in shapes(codebook, run).items():
            for scale in (1e-162, 1e300):
                own = keys(recipients, f"{family} {kind} {run} {scale}")
                found = decode(codebook, own, scaled(extracted, scale), mass, ALPHA, max_rounds=1)
                proven = prove_codeword(
                    codebook, codebook.packed(own[:1])[0], scaled(extracted, scale), mass, 1, ALPHA
                )
                assert np.isfinite(found.log_bounds).all() and np.isfinite(found.scores).all()
                assert np.isfinite(proven[0])
                wrong[kind] = wrong.get(kind, 0) + bool(found.accused) + proven[1]
                total += 2
    counted = sum(wrong.values())
    assert counted <= ALPHA * total
    each = 2 * 2 * runs
    assert max(wrong.values()) <= ALPHA * each + 4 * math.sqrt(ALPHA * each)
    assert wrong["nothing read"] == wrong["nothing there"] == 0


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", CODES)
def test_four_hundred_innocents_at_any_scale(family, scale):
    """As was seen at 1e-162, where the square of 1.6 is a number and that of 1.5 is 0: up to 164 of 400 accused."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1, 1], LENGTH)
    few = np.where(np.arange(LENGTH) < 4, 1.6, 1.5)
    for extracted in (few * signs, rng.standard_normal(LENGTH), rng.uniform(1.2, 1.58, LENGTH) * signs):
        found = decode(CODES[family], keys(400), scaled(extracted, scale), np.ones(LENGTH), ALPHA)
        assert found.accused == ()
        assert np.abs(found.scores).max() < 6


@pytest.mark.parametrize("scale", SCALES[1:])
@pytest.mark.parametrize("mass_scale", [1e-300, 1.0, 1e300])
@pytest.mark.parametrize("strategy", ["average", "median"])
def test_colluders_are_caught_at_any_scale_as_at_another(scale, mass_scale, strategy):
    codebook = Tardos(1024, 5, SECRET)
    copy_keys, rng = keys(60), np.random.default_rng(1)
    held = words(codebook, copy_keys[:5])
    mass = rng.uniform(0.5, 1.0, 1024)
    mixed = held.mean(axis=0) if strategy == "average" else np.sign(held.sum(axis=0))
    extracted = mass * mixed + np.sqrt(mass) * 0.1 * rng.standard_normal(1024)
    extracted /= np.abs(extracted).max()
    plain = decode(codebook, copy_keys, extracted, mass)
    found = decode(codebook, copy_keys, extracted * scale, mass * mass_scale)
    assert set(plain.accused) == set(range(5))
    assert found.accused == plain.accused
    tolerance = 1e-3 if scale > 1e-300 else 0.1
    np.testing.assert_allclose(found.scores[:5], plain.scores[:5], rtol=tolerance)
    for i in (0, 30):
        one, other = (
            prove_codeword(codebook, codebook.packed(copy_keys[i : i + 1])[0], *pair, 60, ALPHA)
            for pair in ((extracted, mass), (extracted * scale, mass * mass_scale))
        )
        assert one[1] == other[1]
        assert other[0] == pytest.approx(one[0], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("power", [-1000, -540, 0, 540, 1000])
def test_a_power_of_two_changes_no_digit(power):
    codebook, copy_keys = Tardos(1024, 5, SECRET), keys(60)
    rng = np.random.default_rng(1)
    mass = rng.uniform(0.5, 1, 1024)
    extracted = words(codebook, copy_keys[:7]).mean(axis=0) * mass + 0.2 * rng.standard_normal(1024)
    plain = decode(codebook, copy_keys, extracted, mass)
    found = decode(codebook, copy_keys, np.ldexp(extracted, power), np.ldexp(mass, -power))
    assert found.accused == plain.accused
    np.testing.assert_array_equal(found.scores, plain.scores)
    np.testing.assert_array_equal(found.log_bounds, plain.log_bounds)
    nobody = np.empty((0, 1024))
    residual = residual_signal(codebook, extracted, mass, nobody)
    again = residual_signal(codebook, np.ldexp(extracted, power), np.ldexp(mass, -power), nobody)
    np.testing.assert_allclose(np.ldexp(again, -power), residual, rtol=1e-12)


@pytest.mark.parametrize("scale", SCALES[1:])
def test_what_was_done_is_inferred_at_any_scale(scale):
    codebook, rng = Tardos(4096, 5, SECRET), np.random.default_rng(1)
    held, mass = np.zeros(4096, int), np.ones(4096)
    nobody = np.empty((0, 4096))
    extracted = np.sign(words(codebook, keys(7)).sum(axis=0)) + 0.2 * rng.standard_normal(4096)
    extracted /= np.abs(extracted).max()
    plain, found = (infer_strategy(codebook, y, mass, held, 0) for y in (extracted, extracted * scale))
    assert found.unknown == plain.unknown
    tolerance = 1e-3 if scale > 1e-300 else 0.2
    np.testing.assert_allclose(found.means, plain.means, atol=tolerance)
    ratio = [
        log_likelihood_ratio(codebook, y, mass, held, s) for y, s in ((extracted, plain), (extracted * scale, found))
    ]
    assert np.corrcoef(*ratio)[0, 1] > 1 - tolerance
    assert is_unexplained(codebook, extracted * scale, mass, nobody) == is_unexplained(
        codebook, extracted, mass, nobody
    )


numbers = st.floats(allow_nan=False, allow_infinity=False)
masses = st.floats(0, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_numbers_are_decoded_without_an_error_and_accuse_no_innocent_at_a_level_that_none_reaches(data):
    codebook = data.draw(st.sampled_from([FairSigns(64), Tardos(64, 2, SECRET), Nuida(64, 4, SECRET)]))
    pool = data.draw(st.lists(numbers, min_size=1, max_size=6))
    weights = data.draw(st.lists(masses, min_size=1, max_size=3))
    order = np.random.default_rng(data.draw(st.integers(0, 9)))
    extracted, mass = order.choice(pool, 64), order.choice(weights, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the largest numbers there are over the smallest, too
        found = decode(codebook, keys(20), extracted, mass, alpha=1e-9)
        score, proven = prove_codeword(codebook, codebook.packed(keys(1))[0], extracted, mass, 20, 1e-9)
        residual = residual_signal(codebook, extracted, mass, NOBODY[:, :64])
        is_unexplained(codebook, extracted, mass, NOBODY[:, :64])
        strategy = infer_strategy(codebook, extracted, mass, np.zeros(64, int), 0)
        if strategy is not None:
            ratio = log_likelihood_ratio(codebook, extracted, mass, np.zeros(64, int), strategy)
            assert np.isfinite(ratio).all()
    assert found.accused == () and not proven
    assert np.isfinite([*found.scores, *found.log_bounds, *residual, score]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=7, max_size=7))
def test_any_numbers_are_decoded_softly_as_on_any_other_scale(numbers):
    design, extracted = BlockDesign(7), np.array(numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = soft_decode(design, extracted, alpha=ALPHA)
    assert np.isfinite([*found.weights, *found.log10_bounds]).all()
    if np.abs(extracted).max(initial=0) > 1e-290:
        unit = extracted / np.abs(extracted).max()
        assert found.accused == soft_decode(design, unit, alpha=ALPHA).accused


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["noise", "one giant"])
def test_the_soft_decoder_accuses_innocents_no_more_often_than_promised_at_any_scale(scale, kind):
    design, trials = BlockDesign(7), 400
    rng = np.random.default_rng(7)
    suspect = rng.standard_normal(7) if kind == "noise" else np.where(np.arange(7) == 2, 1e8, rng.standard_normal(7))
    suspect /= np.abs(suspect).max()
    wrong = 0
    for u in ortho_group.rvs(7, size=trials, random_state=rng):
        found = soft_decode(design, scaled(u.T @ suspect, scale), coalition=2, alpha=ALPHA)
        wrong += bool(found.accused)
    assert wrong <= ALPHA * trials + 3 * math.sqrt(ALPHA * trials)


BAD = {
    "NaN": (np.where(np.arange(LENGTH) == 3, np.nan, 1.0), np.ones(LENGTH), "not finite"),
    "infinite": (np.where(np.arange(LENGTH) == 3, -np.inf, 1.0), np.ones(LENGTH), "not finite"),
    "NaN in the mass": (np.ones(LENGTH), np.where(np.arange(LENGTH) == 3, np.nan, 1.0), "mass has values that are"),
    "infinite mass": (np.ones(LENGTH), np.where(np.arange(LENGTH) == 3, np.inf, 1.0), "mass has values that are"),
    "negative mass": (np.ones(LENGTH), np.where(np.arange(LENGTH) == 3, -1e-300, 1.0), "has negative values"),
    "another length": (np.ones(LENGTH - 8), np.ones(LENGTH), "256,"),
    "a matrix": (np.ones((1, LENGTH)), np.ones(LENGTH), "256,"),
    "complex": (np.ones(LENGTH, complex), np.ones(LENGTH), "real numbers"),
    "text": (np.full(LENGTH, "1"), np.ones(LENGTH), "real numbers"),
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_signals_are_refused_by_everything_that_takes_one(kind):
    extracted, mass, said = BAD[kind]
    codebook, copy_keys, held = CODES["tardos"], keys(3), np.zeros(LENGTH, int)
    ordinary = np.random.default_rng(0).standard_normal(LENGTH)
    strategy = infer_strategy(codebook, ordinary, np.ones(LENGTH), held, 0)
    for refusing in (
        lambda: decode(codebook, copy_keys, extracted, mass),
        lambda: decode_all(codebook, copy_keys, [(ordinary, np.ones(LENGTH)), (extracted, mass)]),
        lambda: prove_codeword(codebook, codebook.packed(copy_keys[:1])[0], extracted, mass, 3, 1e-6),
        lambda: residual_signal(codebook, extracted, mass, NOBODY),
        lambda: is_unexplained(codebook, extracted, mass, NOBODY),
        lambda: infer_strategy(codebook, extracted, mass, held, 0),
        lambda: log_likelihood_ratio(codebook, extracted, mass, held, strategy),
    ):
        with pytest.raises(CodeError, match=said):
            refusing()


def test_what_stands_where_nothing_was_read_counts_for_nothing():
    codebook, copy_keys = CODES["tardos"], keys(20)
    rng = np.random.default_rng(0)
    mass = (np.arange(LENGTH) % 2).astype(float)
    extracted = words(codebook, copy_keys[:1])[0] * mass + 0.1 * rng.standard_normal(LENGTH) * mass
    plain = decode(codebook, copy_keys, extracted, mass)
    found = decode(
        codebook, copy_keys, np.where(mass > 0, extracted, 1e300 * words(codebook, copy_keys[5:6])[0]), mass
    )
    assert plain.accused == found.accused == (0,)
    np.testing.assert_array_equal(found.scores, plain.scores)
    tiny = decode(codebook, copy_keys, extracted, np.where(mass > 0, mass, 1e-100))
    np.testing.assert_array_equal(tiny.scores, plain.scores)


def test_a_signal_of_order_1_is_not_changed():
    rng = np.random.default_rng(0)
    once = to_signal(1e-170 * rng.standard_normal(LENGTH), 1e200 * rng.uniform(0, 1, LENGTH), LENGTH)
    again = to_signal(once.values, once.mass, LENGTH)
    np.testing.assert_array_equal(again.values, once.values)
    np.testing.assert_array_equal(again.mass, once.mass)
    assert again.exponent == again.mass_exponent == 0
    assert 1 <= np.abs(once.values).max() < 2
    assert 1 <= once.mass.max() < 2


class NeverVaries(FairSigns):
    """A code with positions at which all recipients hold the same bit."""

    @property
    def probability(self):
        return np.where(np.arange(self.length) < 8, 1.0, np.where(np.arange(self.length) < 16, 0.0, 0.5))


@pytest.mark.parametrize("scale", [*SCALES[1:], 1.0])
def test_standardized_functions_have_variance_1_at_any_scale_and_0_where_nothing_varies(scale):
    codebook, rng = NeverVaries(LENGTH), np.random.default_rng(0)
    giant = np.where(np.arange(LENGTH) < 16, 1.0, 1e-250 * rng.standard_normal(LENGTH))
    raw = np.stack([rng.uniform(-1, 1, LENGTH), giant, (np.arange(LENGTH) < 16).astype(float)])
    found = codebook.standardize(scaled(raw, scale))
    variances = (found**2 * codebook.variance).sum(axis=1)
    assert variances[0] == pytest.approx(1)
    assert variances[1] == pytest.approx(1) or not found[1].any()
    assert not found[2].any()
    assert not found[:, :16].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_function_that_is_not_finite_is_refused(value):
    with pytest.raises(CodeError, match="not finite"):
        CODES["tardos"].standardize(np.where(np.arange(LENGTH) == 3, value, 1.0)[None])


@pytest.mark.parametrize("alpha", [0.0, -1e-6, 0.0500001, 0.99, 1.0, float("nan"), float("inf")])
def test_nobody_is_accused_at_a_level_above_0_05(alpha):
    codebook, extracted, mass = CODES["tardos"], np.ones(LENGTH), np.ones(LENGTH)
    for refusing in (
        lambda: decode(codebook, keys(2), extracted, mass, alpha),
        lambda: decode_all(codebook, keys(2), [], alpha),
        lambda: prove_codeword(codebook, codebook.packed(keys(1))[0], extracted, mass, 2, alpha),
        lambda: soft_decode(BlockDesign(7), np.ones(7), alpha=alpha),
    ):
        with pytest.raises(CodeError, match=r"must be above 0 and at most 0\.05"):
            refusing()


@pytest.mark.parametrize("candidates", [decoding.CANDIDATES, 16])
def test_the_bound_pays_for_the_recipients_given(monkeypatch, candidates):
    monkeypatch.setattr(decoding, "CANDIDATES", candidates)
    codebook, copy_keys = Tardos(1024, 5, SECRET), keys(40)
    extracted = words(codebook, copy_keys[:3]).mean(axis=0) + 0.3 * np.random.default_rng(0).standard_normal(1024)
    mass = np.ones(1024)
    own, same, more = (decode(codebook, copy_keys, extracted, mass, recipients=n) for n in (None, 40, 40_000))
    np.testing.assert_array_equal(own.log_bounds, same.log_bounds)
    np.testing.assert_array_equal(own.scores, more.scores)
    accused = list(own.accused)
    np.testing.assert_allclose(more.log_bounds[accused] - own.log_bounds[accused], math.log(1000), atol=0.3)
    assert more.threshold > own.threshold
    shared = decode(codebook, copy_keys, extracted, mass, 1e-9)
    assert more.threshold == pytest.approx(shared.threshold)
    both = decode_all(codebook, copy_keys, [(extracted, mass), (-extracted, mass)], recipients=40_000)
    np.testing.assert_array_equal(both[0].log_bounds, more.log_bounds)


@pytest.mark.parametrize("recipients", [39, 1, 0, -5])
def test_the_bound_pays_for_no_fewer_recipients_than_are_tested(recipients):
    with pytest.raises(CodeError, match=f"at least 40, the number that is tested, got {recipients}"):
        decode(CODES["tardos"], keys(40), np.ones(LENGTH), np.ones(LENGTH), recipients=recipients)


def test_a_codeword_is_proven_among_one_recipient_or_more_and_in_a_round_or_more():
    codebook, ones = CODES["tardos"], np.ones(LENGTH)
    with pytest.raises(CodeError, match="at least 1, the number that is tested, got 0"):
        prove_codeword(codebook, codebook.packed(keys(1))[0], ones, ones, 0, 1e-6)
    with pytest.raises(CodeError, match="at least 1, got 0"):
        decode(codebook, keys(2), ones, ones, max_rounds=0)
