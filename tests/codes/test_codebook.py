import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.codes import FAMILIES, FairSigns, Nuida, Tardos, make_codebook
from hf_fingerprint.codes.biased import REGULARIZATION
from hf_fingerprint.codes.codebook import BLOCK, MAX_LENGTH, MIN_LENGTH, PACKED_ROWS
from hf_fingerprint.codes.scoring import SINGLE_PRECISION_CHUNK
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import Stream, derive


SECRET = bytes(range(32))
COPY_KEY = bytes(range(100, 132))
COALITION = 10


def make(family, length=256):
    return make_codebook(family, length, COALITION, SECRET)


def keys(count, label="recipient"):
    return [hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(count)]


def dense(codebook, copy_keys):
    """All codewords at once, `(n, V)`, -1 and +1, each bit derived as the design says: 16 or 1 bits of the stream."""
    words = []
    for key in copy_keys:
        stream = Stream(derive(key, "codeword", codebook.family)).take(codebook.stream_bytes).tobytes()
        if codebook.family == "fair_signs":
            words.append([stream[i // 8] >> (7 - i % 8) & 1 for i in range(codebook.length)])
        else:
            draws = [int.from_bytes(stream[2 * i : 2 * i + 2], "little") for i in range(codebook.length)]
            words.append([draw < round(p * 65536) for draw, p in zip(draws, codebook.probability, strict=True)])
    return 2.0 * np.array(words) - 1


def functions(codebook, count=2, seed=0):
    return codebook.standardize(np.random.default_rng(seed).standard_normal((count, codebook.length)))


def test_tardos_thresholds_are_golden():
    thresholds = Tardos(1024, COALITION, SECRET).thresholds
    assert thresholds.dtype == np.uint16
    assert thresholds[:8].tolist() == [64945, 59011, 59757, 11121, 37, 4302, 33939, 64003]
    assert (
        hashlib.sha256(thresholds.astype("<u2").tobytes()).hexdigest()
        == "9f3fb12f30be9939990bbdf19cc294ab05410db75e22e50fcb8bffa07913f0a1"
    )


@pytest.mark.parametrize(
    ("family", "first", "digest"),
    [
        ("tardos", [1, 1, 1, -1, -1, -1, 1, 1], "3d988d8793fdedec9a4db56740eb65adbcfbee7e8957d84289f65ac3caacef34"),
        ("nuida", [-1, -1, 1, 1, -1, -1, 1, 1], "a7f397c4ebf9204c46594cf081f35e55a3a9143380fd40863b1e2868c948c147"),
        ("fair_signs", [1, 1, -1, 1, 1, -1, 1, 1], "39013f25aaf2ec12829def25784e73ad4c8be3358da8f06ecf016560e6533884"),
    ],
)
def test_codewords_are_golden(family, first, digest):
    codebook = make(family, 1024)
    assert codebook.codeword(COPY_KEY)[:8].tolist() == first
    assert hashlib.sha256(codebook.packed([COPY_KEY]).tobytes()).hexdigest() == digest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [0, 1, PACKED_ROWS + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_packed_and_codewords_are_the_codewords_as_defined(family, count):
    codebook, copy_keys = make(family), keys(count)
    expected = dense(codebook, copy_keys).reshape(count, 256)
    packed = codebook.packed(copy_keys)
    assert packed.shape == (count, 32)
    np.testing.assert_array_equal(2.0 * np.unpackbits(packed, axis=1) - 1, expected)
    if count:
        word = codebook.codeword(copy_keys[-1])
        assert word.dtype == np.int8
        np.testing.assert_array_equal(word, expected[-1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [0, 1, BLOCK, BLOCK + PACKED_ROWS + 5])
def test_scores_agree_with_the_dense_computation(family, count):
    codebook, copy_keys = make(family), keys(count)
    scored = functions(codebook)
    expected = (dense(codebook, copy_keys).reshape(count, 256) - codebook.mean) @ scored.T
    np.testing.assert_allclose(codebook.scores(copy_keys, scored), expected, atol=1e-5)
    np.testing.assert_allclose(codebook.packed_scores(codebook.packed(copy_keys), scored), expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_that_could_matter_are_in_double_precision(family):
    codebook, copy_keys = make(family), keys(40)
    words = dense(codebook, copy_keys)
    scored = codebook.standardize(np.stack([words[3] - codebook.mean, words[20] - codebook.mean]))
    expected = (words - codebook.mean) @ scored.T
    packed, least = codebook.packed(copy_keys), np.array([3.0, 1.5])
    high = (expected >= least).any(axis=1)
    assert high[3] and high[20] and not high.all()
    found = codebook.packed_scores(packed, scored, least)
    np.testing.assert_allclose(found[high], expected[high], rtol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(codebook.packed_scores(packed, scored), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [64, 1024, 4 * SINGLE_PRECISION_CHUNK])
def test_single_precision_is_never_further_off_than_its_error(family, length):
    """Functions of all shapes; the largest weights are where a position is rarest, and sums cancel worst."""
    codebook, rng = make(family, length), np.random.default_rng(0)
    shapes = np.stack(
        [
            rng.standard_normal(length),
            rng.standard_cauchy(length),
            np.ones(length),
            np.arange(length) < 8,
            np.where(np.arange(length) < length // 2, 1e3, -1e3) + rng.standard_normal(length),
            1e-50 + (np.arange(length) == np.argmin(codebook.variance)),
        ]
    )
    scored, copy_keys = codebook.standardize(shapes), keys(60)
    exact = codebook.packed_scores(codebook.packed(copy_keys), scored)
    error = codebook.screening_error(scored)
    assert (np.abs(codebook.scores(copy_keys, scored) - exact) <= error).all()
    assert (error < 0.5).all()


def test_whoever_is_within_the_error_of_a_threshold_is_scored_exactly():
    codebook, copy_keys = make("tardos", 1024), keys(200)
    packed, scored = codebook.packed(copy_keys), functions(codebook)
    exact = codebook.packed_scores(packed, scored)
    screened = codebook.scores(copy_keys, scored)
    assert (screened != exact).any(axis=1).all()
    for row in range(20):  # thresholds that each recipient reaches just so
        found = codebook.packed_scores(packed, scored, exact[row])
        assert (found[row] == exact[row]).all()
        assert ((found >= exact[row]) == (exact >= exact[row])).all()


def test_exact_scores_do_not_depend_on_who_else_is_scored():
    codebook = make("tardos", 1024)
    packed, scored = codebook.packed(keys(50)), functions(codebook, 3)
    together = codebook.packed_scores(packed, scored)
    np.testing.assert_array_equal(together[7:8], codebook.packed_scores(packed[7:8], scored))
    np.testing.assert_array_equal(together[[3, 40]], codebook.packed_scores(packed[[3, 40]], scored))


@pytest.mark.parametrize("family", FAMILIES)
def test_progress_counts_every_recipient(family):
    steps = []
    codebook, count = make(family), 3 * BLOCK + 5
    codebook.scores(keys(count), functions(codebook), lambda *step: steps.append(step))
    assert steps == [("scoring", done, count) for done in (BLOCK, 2 * BLOCK, 3 * BLOCK, count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_are_as_frequent_as_the_probabilities_say(family):
    """20,000 codewords: every position within 5 standard deviations, all together as noisy as chance."""
    codebook, count = make(family, 64), 20_000
    ones = np.unpackbits(codebook.packed(keys(count)), axis=1).sum(axis=0, dtype=np.int64)
    p = codebook.probability
    deviation = (ones - count * p) / np.sqrt(count * p * (1 - p))
    assert np.abs(deviation).max() < 5
    assert 0.5 < np.square(deviation).mean() < 1.7


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_of_different_positions_and_recipients_are_independent(family):
    codebook = make(family)
    standard = (dense(codebook, keys(200)) - codebook.mean) / np.sqrt(codebook.variance)
    standard = standard[:, codebook.variance > 0.1]
    across = standard.T @ standard / len(standard)
    between = standard @ standard.T / standard.shape[1]
    for gram in (across, between):
        off = gram[~np.eye(len(gram), dtype=bool)]
        assert abs(off.mean()) < 0.02
        assert np.abs(off).max() < 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_and_variance_are_those_of_the_bits(family):
    codebook = make(family)
    p = codebook.probability
    np.testing.assert_allclose(codebook.mean, p * 1 + (1 - p) * -1, rtol=1e-12)
    np.testing.assert_allclose(
        codebook.variance, p * (1 - codebook.mean) ** 2 + (1 - p) * (-1 - codebook.mean) ** 2, rtol=1e-9
    )


@given(st.sampled_from(FAMILIES), st.integers(0, 2**32), st.floats(1e-6, 1e6))
def test_standardized_functions_give_scores_of_variance_1_whatever_their_scale(family, seed, scale):
    codebook = make(family, 64)
    raw = np.random.default_rng(seed).standard_normal((3, 64)) * scale
    scored = codebook.standardize(raw)
    np.testing.assert_allclose((scored**2 * codebook.variance).sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(scored / scored[:, :1], raw / raw[:, :1], rtol=1e-9)


def test_innocents_scores_have_mean_0_and_variance_1():
    codebook = make("tardos")
    scores = codebook.scores(keys(4000), functions(codebook))
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(scores.var(axis=0), 1, atol=0.12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_function_of_zeros_standardizes_to_zeros(family):
    np.testing.assert_array_equal(make(family).standardize(np.zeros((2, 256))), 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_never_holds_the_codebook(family):
    """3,000 codewords of 4,096 positions are 12 MiB as bits in bytes and 47 MiB as the numbers that are multiplied."""
    codebook, copy_keys = make(family, 4096), keys(3000)
    scored = functions(codebook)
    codebook.scores(copy_keys[:20], scored)
    tracemalloc.start()
    try:
        codebook.scores(copy_keys, scored)
        _, scoring = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        packed = codebook.packed(copy_keys)
        codebook.packed_scores(packed, scored)
        _, packing = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scoring < 2 << 20
    assert packing < packed.nbytes + (3 << 20)


@given(st.integers(1, 60), st.binary(min_size=32, max_size=32))
@settings(max_examples=30)
def test_tardos_probabilities_are_exact_and_within_the_cut_off(coalition, secret):
    codebook = Tardos(512, coalition, secret)
    units = codebook.probability * 65536
    np.testing.assert_array_equal(units, np.rint(units))
    cut_off = 1 / (300 * coalition)
    assert codebook.probability.min() >= cut_off - 2.0**-17
    assert codebook.probability.max() <= 1 - cut_off + 2.0**-17


@pytest.mark.parametrize("coalition", [300, 100_000])
def test_even_a_cut_off_finer_than_the_grid_leaves_every_position_uncertain(coalition):
    codebook = Tardos(1 << 16, coalition, SECRET)
    assert codebook.probability.min() >= 2.0**-16
    assert codebook.probability.max() <= 1 - 2.0**-16
    assert codebook.variance.min() > 0


def test_tardos_probabilities_follow_the_arcsine_distribution():
    """Angles `asin(sqrt(p))` are uniform: within Kolmogorov's distance for one in a million."""
    codebook = Tardos(1 << 15, COALITION, SECRET)
    low = np.arcsin(np.sqrt(1 / (300 * COALITION)))
    angles = np.sort(np.arcsin(np.sqrt(codebook.probability)))
    uniform = (angles - low) / (np.pi / 2 - 2 * low)
    steps = np.arange(len(uniform)) / len(uniform)
    assert np.abs(uniform - steps).max() < 2.7 / np.sqrt(len(uniform))
    assert codebook.probability.min() == pytest.approx(1 / (300 * COALITION), rel=0.1)
    assert codebook.probability.max() == pytest.approx(1 - 1 / (300 * COALITION), abs=1e-4)


def test_tardos_biases_depend_on_the_secret_and_the_cut_off_alone():
    first = Tardos(256, COALITION, SECRET).thresholds
    np.testing.assert_array_equal(first, Tardos(256, COALITION, SECRET).thresholds)
    np.testing.assert_array_equal(first[:128], Tardos(128, COALITION, SECRET).thresholds)
    assert (first != Tardos(256, COALITION, bytes(32)).thresholds).mean() > 0.9
    assert (first != Tardos(256, 3, SECRET).thresholds).mean() > 0.5


def test_fair_signs_are_fair():
    codebook = FairSigns(256)
    np.testing.assert_array_equal(codebook.probability, 0.5)
    np.testing.assert_array_equal(codebook.mean, 0)
    np.testing.assert_array_equal(codebook.variance, 1)


def test_the_score_function_of_fair_signs_is_the_signal():
    extracted = np.random.default_rng(0).standard_normal(256)
    score_functions = FairSigns(256).score_functions(extracted)
    np.testing.assert_array_equal(score_functions, extracted[None])


@pytest.mark.parametrize("family", ["tardos", "nuida"])
@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_the_bank_of_biased_codes_has_one_function_for_averages_and_one_for_minority_votes(family, noise):
    """That for averages weighs each position by the energy that is expected of it, copies' and noise's."""
    codebook = make(family, 1 << 14)
    rng = np.random.default_rng(0)
    extracted = rng.standard_normal(1 << 14) * np.sqrt(codebook.variance / 4 + noise**2)
    average, minority = codebook.score_functions(extracted)
    expected = codebook.variance / 4 + max(noise**2, REGULARIZATION / 4)
    np.testing.assert_allclose(average * expected, extracted, rtol=0.25 if noise < 1 else 0.08)
    np.testing.assert_allclose(minority * (codebook.variance + REGULARIZATION), extracted)


def test_a_signal_of_zeros_has_score_functions_of_zeros():
    np.testing.assert_array_equal(make("tardos").score_functions(np.zeros(256)), 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [0, -8, 8, MIN_LENGTH - 8, MIN_LENGTH + 1, 1001, MAX_LENGTH + 8])
def test_lengths_that_make_no_sense_are_refused(family, length):
    with pytest.raises(CodeError, match=f"got {length}"):
        make(family, length)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [MIN_LENGTH, MIN_LENGTH + 8, MAX_LENGTH])
def test_lengths_at_the_limits_are_accepted(family, length):
    assert make(family, length).length == length


@pytest.mark.parametrize("coalition", [0, -3])
def test_a_coalition_of_nobody_is_refused(coalition):
    with pytest.raises(CodeError, match=f"at least 1, got {coalition}"):
        Tardos(256, coalition, SECRET)


@pytest.mark.parametrize(("family", "kind"), [("tardos", Tardos), ("nuida", Nuida), ("fair_signs", FairSigns)])
def test_make_codebook_makes_the_requested_family(family, kind):
    codebook = make(family)
    assert type(codebook) is kind
    assert codebook.family == family
    assert family in FAMILIES


def test_make_codebook_hands_the_parameters_on():
    np.testing.assert_array_equal(make("tardos").thresholds, Tardos(256, COALITION, SECRET).thresholds)


def test_a_family_that_this_version_does_not_know_is_refused():
    """A vault of a later version must not be decoded as a Tardos code."""
    with pytest.raises(CodeError, match="block_design"):
        make("block_design")
