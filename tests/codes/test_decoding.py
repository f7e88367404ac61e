import hashlib
import math

import numpy as np
import pytest

from hf_fingerprint.codes import (
    FairSigns,
    Nuida,
    Tardos,
    decode,
    decode_all,
    decode_readings,
    decoding,
    round_functions,
)
from hf_fingerprint.codes.collusion import POSITION_STRATEGIES, collude_at_positions
from hf_fingerprint.codes.decoding import MAX_ROUNDS
from hf_fingerprint.codes.residual import is_unexplained, residual_signal
from hf_fingerprint.errors import CodeError


pytestmark = pytest.mark.integration


SECRET = bytes(range(32))
LOG_ALPHA = math.log(1e-6)


def make(family, length, coalition=10, secret=SECRET):
    if family == "fair_signs":
        return FairSigns(length)
    return (Nuida if family == "nuida" else Tardos)(length, coalition, secret)


def keys(count, label="recipient"):
    return [hashlib.sha256(f"{label} {i}".encode()).digest() for i in range(count)]


def words(codebook, copy_keys):
    return 2.0 * np.unpackbits(codebook.packed(copy_keys), axis=1) - 1


def collude(codebook, copy_keys, strategy="average", noise=0.0, seed=1):
    rng = np.random.default_rng(seed)
    return collude_at_positions(strategy, words(codebook, copy_keys), rng) + noise * rng.standard_normal(
        codebook.length
    )


def check(decoded, count, alpha=1e-6):
    """Checks what holds for every decoding."""
    assert decoded.scores.shape == decoded.log_bounds.shape == (count,)
    assert not np.isnan(decoded.scores).any()
    assert np.all(np.isfinite(decoded.scores))
    assert np.all(np.isfinite(decoded.log_bounds))
    assert np.all(decoded.log_bounds <= 0)
    assert not math.isnan(decoded.threshold)
    assert len(set(decoded.accused)) == len(decoded.accused)
    assert set(decoded.accused) == set(np.flatnonzero(decoded.log_bounds <= math.log(alpha)))


@pytest.mark.parametrize(
    ("family", "length", "strategy", "colluders", "noise"),
    [
        ("fair_signs", 1024, "average", 1, 0.0),
        ("fair_signs", 1024, "average", 1, 2.0),
        ("fair_signs", 4096, "average", 20, 0.1),
        ("tardos", 1024, "average", 1, 0.0),
        ("tardos", 4096, "average", 1, 3.0),
        ("tardos", 4096, "average", 5, 0.3),
        ("tardos", 16384, "average", 20, 0.3),
        ("tardos", 4096, "min-max", 5, 0.3),
        ("tardos", 4096, "random pick", 5, 0.3),
        ("tardos", 4096, "median", 5, 0.3),
        ("tardos", 4096, "minority", 5, 0.3),
        ("tardos", 16384, "minority", 8, 0.3),
        ("nuida", 4096, "average", 5, 0.3),
        ("nuida", 4096, "minority", 5, 0.3),
        ("nuida", 4096, "median", 5, 0.3),
    ],
)
def test_all_colluders_are_accused_and_nobody_else(family, length, strategy, colluders, noise):
    codebook, copy_keys = make(family, length), keys(300)
    members = list(range(7, 7 + colluders))
    extracted = collude(codebook, [copy_keys[i] for i in members], strategy, noise)
    decoded = decode(codebook, copy_keys, extracted, np.ones(length))
    assert sorted(decoded.accused) == members
    check(decoded, 300)
    assert 5 < decoded.threshold < 9
    innocent = np.setdiff1d(np.arange(300), members)
    assert decoded.scores[innocent].max() < 5
    assert np.median(decoded.log_bounds[innocent]) == 0


def nothing_of_ours(codebook):
    """Signals without a recipient's copy, some of them forged to look as if they had one."""
    rng = np.random.default_rng(0)
    length, other = codebook.length, make(codebook.family, codebook.length, secret=bytes(32))
    one_huge = rng.standard_normal(length)
    one_huge[np.argmin(codebook.probability)] = 1e9
    return {
        "noise": rng.standard_normal(length),
        "heavy-tailed noise": rng.standard_cauchy(length),
        "signs": rng.choice([-1.0, 1.0], length),
        "another base's codeword": other.codeword(keys(1, "elsewhere")[0]).astype(float),
        "somebody else's codeword": codebook.codeword(keys(1, "elsewhere")[0]).astype(float),
        "an average of strangers": words(codebook, keys(10, "elsewhere")).mean(axis=0),
        "constant": np.ones(length),
        "one position": np.eye(length)[np.argmax(codebook.probability)],
        "one huge position": one_huge,
        "the mean": codebook.mean,
        "the mean, huge, in noise": 1e6 * codebook.mean + rng.standard_normal(length),
        "the rare bits": np.where(codebook.probability < 0.5, 1.0, -1.0),
        "noise on the rare bits": rng.standard_normal(length) * (codebook.variance < 0.05),
        "tiny noise": 1e-30 * rng.standard_normal(length),
        "huge noise": 1e30 * rng.standard_normal(length),
        "zeros": np.zeros(length),
    }


@pytest.mark.parametrize("family", ["tardos", "nuida", "fair_signs"])
@pytest.mark.parametrize("kind", nothing_of_ours(FairSigns(64)))
def test_nobody_is_accused_by_another_models_signal(family, kind):
    codebook, copy_keys = make(family, 2048), keys(300)
    decoded = decode(codebook, copy_keys, nothing_of_ours(codebook)[kind], np.ones(2048))
    assert decoded.accused == ()
    check(decoded, 300)


def test_a_signal_of_zeros_proves_nothing():
    decoded = decode(make("tardos", 1024), keys(50), np.zeros(1024), np.ones(1024))
    assert decoded.accused == ()
    assert decoded.rounds == 0
    assert decoded.threshold == math.inf
    np.testing.assert_array_equal(decoded.scores, 0)
    np.testing.assert_array_equal(decoded.log_bounds, 0)


def test_without_recipients_nobody_is_accused():
    decoded = decode(make("tardos", 1024), [], np.ones(1024), np.ones(1024))
    assert decoded.accused == ()
    check(decoded, 0)


@pytest.mark.parametrize(
    ("family", "length", "colluders", "at_once"), [("fair_signs", 1024, 30, 10), ("tardos", 1024, 22, 10)]
)
def test_joint_decoding_catches_those_that_others_hide(family, length, colluders, at_once):
    """The first round alone, at the same level for each of the ten, sees fewer than a third of this average."""
    codebook, copy_keys = make(family, length), keys(300)
    extracted = collude(codebook, copy_keys[:colluders])
    first = decode(codebook, copy_keys, extracted, np.ones(length), alpha=1e-6 / MAX_ROUNDS, max_rounds=1)
    jointly = decode(codebook, copy_keys, extracted, np.ones(length))
    assert 0 < len(first.accused) < at_once
    assert set(jointly.accused) == set(range(colluders))
    assert set(jointly.accused[: len(first.accused)]) == set(first.accused)
    assert jointly.rounds > 2
    assert jointly.threshold == pytest.approx(first.threshold, rel=1e-6)
    check(jointly, 300)


@pytest.mark.parametrize("colluders", [0, 5, 22])
def test_deciding_among_the_highest_scorers_only_accuses_the_same(monkeypatch, colluders):
    codebook, copy_keys = make("tardos", 1024), keys(300)
    extracted = collude(codebook, copy_keys[40 : 40 + colluders] or keys(1, "elsewhere"), noise=0.05)
    whole = decode(codebook, copy_keys, extracted, np.ones(1024))
    monkeypatch.setattr(decoding, "CANDIDATES", 32)
    among = decode(codebook, copy_keys, extracted, np.ones(1024))
    assert set(whole.accused) == set(range(40, 40 + colluders))
    assert among.accused == whole.accused
    assert among.rounds == whole.rounds
    assert among.threshold == whole.threshold
    check(among, 300)
    accused = list(whole.accused)
    np.testing.assert_allclose(among.scores[accused], whole.scores[accused], rtol=1e-9)
    np.testing.assert_allclose(among.log_bounds[accused], whole.log_bounds[accused], rtol=1e-9)
    others = np.setdiff1d(np.arange(300), accused)
    assert np.corrcoef(among.scores[others], whole.scores[others])[0, 1] > 0.8


@pytest.mark.parametrize("candidates", [decoding.CANDIDATES, 32])
def test_several_suspects_in_one_pass_are_decoded_as_each_alone(monkeypatch, candidates):
    monkeypatch.setattr(decoding, "CANDIDATES", candidates)
    codebook, copy_keys, mass = make("tardos", 1024), keys(200), np.ones(1024)
    extracted_pairs = [(collude(codebook, copy_keys[i : i + 3], s), mass) for i, s in enumerate(POSITION_STRATEGIES)]
    extracted_pairs.append((np.zeros(1024), mass))
    steps: list[tuple[str, int, int | None]] = []
    together = decode_all(codebook, copy_keys, extracted_pairs, progress=lambda *step: steps.append(step))
    assert steps[-1][1:] == (200, 200)
    for found, (extracted, _) in zip(together, extracted_pairs, strict=True):
        alone = decode(codebook, copy_keys, extracted, mass)
        assert found.accused == alone.accused
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
    assert [set(found.accused) for found in together[:-1]] == [
        {i, i + 1, i + 2} for i in range(len(POSITION_STRATEGIES))
    ]


def test_the_bound_pays_for_every_recipient_and_every_round():
    """Ten times the recipients or the rounds: the same score proves a tenth."""
    codebook = make("fair_signs", 1024)
    copy_keys = keys(400)
    extracted = collude(codebook, copy_keys[:1], noise=3)
    few, many = (decode(codebook, copy_keys[:n], extracted, np.ones(1024)) for n in (40, 400))
    once = decode(codebook, copy_keys[:40], extracted, np.ones(1024), max_rounds=1)
    assert few.scores[0] == pytest.approx(many.scores[0])
    assert many.log_bounds[0] - few.log_bounds[0] == pytest.approx(math.log(10), abs=0.3)
    assert few.log_bounds[0] - once.log_bounds[0] == pytest.approx(math.log(MAX_ROUNDS), abs=0.3)
    assert once.threshold < few.threshold < many.threshold


def test_a_stricter_alpha_accuses_no_more():
    codebook, copy_keys = make("tardos", 1024), keys(100)
    extracted = collude(codebook, copy_keys[:6], noise=0.6)
    accused = [
        set(decode(codebook, copy_keys, extracted, np.ones(1024), alpha).accused)
        for alpha in (5e-2, 1e-3, 1e-6, 1e-20)
    ]
    assert accused[0] >= accused[1] >= accused[2] >= accused[3]
    assert len(accused[0]) > len(accused[3])


def test_no_more_rounds_are_run_than_are_paid_for():
    codebook, copy_keys = make("fair_signs", 1024), keys(100)
    extracted = collude(codebook, copy_keys[:30])
    for most in (1, 2, 3):
        assert decode(codebook, copy_keys, extracted, np.ones(1024), max_rounds=most).rounds == most


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_strength_of_the_mark_does_not_matter(scale):
    codebook, copy_keys = make("tardos", 1024), keys(100)
    extracted = collude(codebook, copy_keys[:3], noise=0.3)
    plain, scaled = (decode(codebook, copy_keys, s * extracted, np.ones(1024)) for s in (1, scale))
    assert set(plain.accused) == {0, 1, 2}
    assert scaled.accused == plain.accused
    np.testing.assert_allclose(scaled.scores, plain.scores, rtol=1e-4, atol=1e-4)


def test_uneven_mass_is_taken_into_account():
    """A quarter of the positions with little noise, half with much, the rest not read."""
    codebook, copy_keys = make("tardos", 2048), keys(100)
    rng = np.random.default_rng(0)
    mass = rng.choice([0.0, 0.01, 0.01, 1.0], 2048)
    average = words(codebook, copy_keys[:3]).mean(axis=0)
    extracted = mass * average + np.sqrt(mass) * 0.2 * rng.standard_normal(2048)
    decoded = decode(codebook, copy_keys, extracted, mass)
    assert set(decoded.accused) == {0, 1, 2}
    check(decoded, 100)


def test_two_records_of_one_key_are_both_accused():
    codebook, copy_keys = make("tardos", 1024), keys(50)
    copy_keys[30] = copy_keys[2]
    decoded = decode(codebook, copy_keys, collude(codebook, copy_keys[:4]), np.ones(1024))
    assert set(decoded.accused) == {0, 1, 2, 3, 30}
    check(decoded, 50)


def test_nothing_but_the_arguments_decides():
    codebook, copy_keys = make("tardos", 1024), keys(50)
    extracted, mass = collude(codebook, copy_keys[:4], noise=0.3), np.ones(1024)
    kept = extracted.copy()
    first, again = (decode(codebook, copy_keys, extracted, mass) for _ in range(2))
    assert first.accused == again.accused
    np.testing.assert_array_equal(first.log_bounds, again.log_bounds)
    np.testing.assert_array_equal(extracted, kept)
    np.testing.assert_array_equal(mass, 1)


def test_the_most_certain_come_first():
    codebook, copy_keys = make("tardos", 2048), keys(50)
    weights = np.array([0.5, 0.3, 0.2])
    extracted = weights @ words(codebook, copy_keys[:3])
    assert decode(codebook, copy_keys, extracted, np.ones(2048)).accused == (0, 1, 2)


@pytest.mark.parametrize("candidates", [decoding.CANDIDATES, 32])
def test_progress_counts_every_recipient(monkeypatch, candidates):
    monkeypatch.setattr(decoding, "CANDIDATES", candidates)
    codebook, steps = make("tardos", 1024), []
    decode(codebook, keys(600), collude(codebook, keys(1)), np.ones(1024), progress=lambda *step: steps.append(step))
    assert steps[-1][1:] == (600, 600)
    assert len(steps) > 1


@pytest.mark.parametrize("family", ["tardos", "fair_signs"])
def test_the_residual_is_that_of_weighted_least_squares(family):
    codebook = make(family, 256)
    rng = np.random.default_rng(0)
    mass, extracted = rng.uniform(0.1, 2, 256), rng.standard_normal(256)
    known = (words(codebook, keys(4)) + 1) / 2
    basis = words(codebook, keys(4)) - codebook.mean
    basis = basis if family == "fair_signs" else np.concatenate([basis, codebook.mean[None]])
    root = np.sqrt(mass)
    fitted, *_ = np.linalg.lstsq((basis * root).T, extracted / root, rcond=None)
    residual = residual_signal(codebook, extracted, mass, known)
    np.testing.assert_allclose(residual, extracted - mass * (fitted @ basis), atol=1e-6)
    np.testing.assert_allclose(basis @ residual, 0, atol=1e-5)


def test_what_all_copies_share_is_taken_out():
    codebook = make("tardos", 256)
    extracted = np.random.default_rng(0).standard_normal(256)
    nobody = np.empty((0, 256))
    plain, shifted = (
        residual_signal(codebook, y, np.ones(256), nobody) for y in (extracted, extracted + 50 * codebook.mean)
    )
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
    assert np.linalg.norm(residual_signal(codebook, codebook.mean, np.ones(256), nobody)) < 1e-5


@pytest.mark.parametrize(("strategy", "noise"), [("median", 0.0), ("minority", 0.0), ("min-max", 0.3)])
def test_those_whom_no_linear_score_shows_are_caught_once_the_strategy_is_inferred(monkeypatch, strategy, noise):
    codebook, copy_keys = make("tardos", 8192), keys(300)
    extracted = collude(codebook, copy_keys[:24], strategy, noise)
    inferring = decode(codebook, copy_keys, extracted, np.ones(8192))
    monkeypatch.setattr(round_functions, "is_unexplained", lambda *arguments: False)
    linear = decode(codebook, copy_keys, extracted, np.ones(8192))
    assert set(inferring.accused) == set(range(24))
    assert len(linear.accused) < 16
    check(inferring, 300)


@pytest.mark.parametrize("family", ["tardos", "nuida"])
def test_a_signal_is_explained_once_all_who_averaged_are_accused(family):
    codebook = make(family, 4096)
    copies = words(codebook, keys(4))
    bits, mass = (copies + 1) / 2, np.ones(4096)
    noise = np.random.default_rng(0).standard_normal(4096)
    for sd in (0.0, 0.1, 0.5):
        extracted = copies.mean(axis=0) + sd * noise
        assert not is_unexplained(codebook, extracted, mass, bits)
        assert is_unexplained(codebook, extracted, mass, bits[:2])
        assert is_unexplained(codebook, extracted, mass, np.empty((0, 4096)))
    assert not is_unexplained(codebook, noise, mass, np.empty((0, 4096)))


def test_a_minority_vote_is_not_explained_by_those_who_did_not_cast_it():
    codebook = make("tardos", 4096)
    extracted = collude(codebook, keys(12), "minority", 0.1)
    bits = (words(codebook, keys(6)) + 1) / 2
    assert is_unexplained(codebook, extracted, np.ones(4096), bits)


def test_fair_signs_never_call_for_a_strategy():
    codebook = make("fair_signs", 256)
    assert not is_unexplained(codebook, collude(codebook, keys(2)), np.ones(256), np.empty((0, 256)))


INNOCENTS, POSITIONS = 500, 64


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("tardos", "noise"),
        ("tardos", "rare bits"),
        ("tardos", "one rare bit in noise"),
        ("tardos", "collusion"),
        ("tardos", "noisy collusion"),
        ("tardos", "minority collusion"),
        ("tardos", "noisy median collusion"),
        ("nuida", "noise"),
        ("nuida", "collusion"),
        ("nuida", "minority collusion"),
        ("fair_signs", "noise"),
        ("fair_signs", "collusion"),
    ],
)
def test_the_accusation_is_a_theorem(monkeypatch, family, kind):
    """Up to 100,000 innocents decoded at levels so loose that a bound of the wrong size would show, several rounds and
    strategies that are inferred included.

    The codewords come from numpy in place of streams, which makes them a hundred times cheaper and no different.
    """
    monkeypatch.setattr(decoding, "check_alpha", lambda alpha: None)  # nobody is accused at these levels otherwise
    colluders = 4 if "collusion" in kind else 0
    trials = 200 if "noise" in kind else 50
    rng = np.random.default_rng(3)
    lowest = np.empty(trials)
    for trial in range(trials):
        codebook = make(family, POSITIONS, secret=bytes([trial % 7] * 32))
        bits = rng.random((INNOCENTS + colluders, POSITIONS)) < codebook.probability
        codebook.packed = lambda copy_keys, *rest, bits=bits: np.packbits(bits, axis=1)
        if colluders:
            strategy = next((s for s in POSITION_STRATEGIES if s in kind), "average")
            extracted = collude_at_positions(strategy, 2.0 * bits[-colluders:] - 1, rng)
            extracted += (0.5 if "noisy" in kind else 0.02) * rng.standard_normal(POSITIONS)
        else:
            extracted = rng.standard_normal(POSITIONS)
        if kind == "rare bits":
            rare = np.argsort(codebook.variance)[:8]
            extracted = np.zeros(POSITIONS)
            extracted[rare] = np.where(codebook.probability[rare] < 0.5, 1.0, -1.0)
        if kind == "one rare bit in noise":
            extracted[np.argmin(codebook.probability)] = 5.0
        decoded = decode(codebook, [b""] * len(bits), extracted, np.ones(POSITIONS), alpha=0.5, max_rounds=3)
        check(decoded, len(bits), alpha=0.5)
        lowest[trial] = decoded.log_bounds[:INNOCENTS].min()
        if kind == "collusion" and family == "tardos" and trial == 0:
            assert decoded.rounds > 1
    for level in (0.5, 0.2, 0.05, 0.01):
        accused = int((lowest <= math.log(level)).sum())
        assert accused <= trials * level + 4 * math.sqrt(trials * level * (1 - level))
    assert kind != "noise" or (lowest < 0).any()


@pytest.mark.parametrize("family", ["tardos", "nuida", "fair_signs"])
@pytest.mark.parametrize("strategy", ["average", "median", "minority"])
@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_who_is_accused_does_not_depend_on_innocents(family, strategy, alpha):
    """The proof decodes without an innocent: functions, thresholds and rounds must be the same with one."""
    codebook, copy_keys = make(family, 1024), keys(14)
    extracted = collude(codebook, copy_keys, strategy, 0.2)
    others = keys(200, "innocent")
    alone, among = (
        decode(codebook, own, extracted, np.ones(1024), alpha, recipients=1000)
        for own in (copy_keys, [*others[:100], *copy_keys, *others[100:]])
    )
    accused = [i + 100 for i in alone.accused]
    assert set(among.accused) == set(accused)
    assert among.threshold == alone.threshold
    assert len(accused) == len(copy_keys) or among.rounds == alone.rounds
    np.testing.assert_array_equal(among.scores[accused], alone.scores[list(alone.accused)])


def test_a_recipient_whom_one_of_several_readings_shows_is_accused():
    codebook = Tardos(4096, 10, bytes(32))
    keys = [bytes([i]) * 32 for i in range(50)]
    rng = np.random.default_rng(0)
    marked = codebook.codeword(keys[3]) + 3 * rng.standard_normal(4096)
    noise, empty = rng.standard_normal(4096), np.zeros(4096)
    mass = np.ones(4096)

    alone = decode(codebook, keys, marked, mass)
    for readings in (
        [(marked, mass), (noise, mass)],
        [(noise, mass), (marked, mass)],
        [(empty, mass), (marked, mass)],
    ):
        found = decode_readings(codebook, keys, readings)
        assert found.accused == alone.accused == (3,)
        # the bound pays for both readings
        assert found.log_bounds[3] == pytest.approx(alone.log_bounds[3] + np.log(2), abs=0.2)
    assert decode_readings(codebook, keys, [(marked, mass)]).log_bounds[3] == alone.log_bounds[3]


def test_readings_that_hold_nothing_accuse_nobody():
    codebook, empty = Tardos(4096, 10, bytes(32)), np.zeros(4096)

    assert decode_readings(codebook, [bytes(32)], [(empty, empty), (empty, empty)]).accused == ()
    with pytest.raises(CodeError, match="no reading"):
        decode_readings(codebook, [bytes(32)], [])
