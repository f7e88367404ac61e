import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom

from hf_fingerprint.blackbox.querying.e_process import MAX_RESPONSES, EProcess, log_e_value
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels
from hf_fingerprint.errors import CodeError
from hf_fingerprint.keys import new_secret


KEYS = [i.to_bytes(32, "big") for i in range(1000)]


@given(st.integers(1, 400), st.integers(2, 1000))
def test_the_game_is_fair(queried, classes):
    """What an innocent has on average is what they began with."""
    k = np.arange(queried + 1)
    log_chance = binom(queried, 1 / classes).logpmf(k)

    assert np.exp(log_chance + log_e_value(k, queried, classes)).sum() == pytest.approx(1, rel=1e-6)


@given(st.integers(1, 60), st.integers(2, 50), st.data())
def test_each_answer_is_a_fair_game_of_its_own(queried, classes, data):
    k = data.draw(st.integers(0, queried))
    now = np.exp(log_e_value(k, queried, classes))
    won, lost = (np.exp(log_e_value(after, queried + 1, classes)) for after in (k + 1, k))

    assert won / classes + lost * (1 - 1 / classes) == pytest.approx(now, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("k", "n", "classes"), [(0, 5, 10), (3, 5, 10), (40, 100, 10), (1, 3, 2)])
def test_the_wealth_is_the_integral(k, n, classes):
    p = 1 / classes
    integral = quad(lambda t: t**k * (1 - t) ** (n - k) / (p**k * (1 - p) ** (n - k)), p, 1)[0] / (1 - p)

    assert np.exp(log_e_value(k, n, classes)) == pytest.approx(integral, rel=1e-6)


def test_no_query_proves_nothing():
    e_process = EProcess(KEYS, 200, 10)

    assert np.array_equal(e_process.log10_bounds(), np.zeros(1000))
    assert not len(e_process.accused())


@pytest.mark.parametrize(("assigned_share", "within"), [(1.0, 20), (0.6, 70), (0.45, 120)])
def test_a_copy_that_predicts_its_labels_is_accused_among_a_thousand(assigned_share, within):
    rng = np.random.default_rng(0)
    own = keyed_labels(KEYS[7:8], 200, 10)[0]
    responses = np.where(rng.random(200) < assigned_share, own, rng.integers(0, 10, 200))
    e_process = EProcess(KEYS, 200, 10)

    while not len(e_process.accused()):
        e_process.update(e_process.queried, int(responses[e_process.queried]))

    assert e_process.accused().tolist() == [7]
    assert e_process.queried <= within
    assert e_process.log10_bounds()[7] <= -6


def test_colluders_of_an_average_are_accused_together_if_it_predicts_labels_of_both():
    rng = np.random.default_rng(1)
    one, two = keyed_labels(KEYS[:2], 200, 10)
    responses = np.where(rng.random(200) < 0.5, one, two)
    e_process = EProcess(KEYS, 200, 10)
    for trigger, response in enumerate(responses):
        e_process.update(trigger, int(response))

    assert set(e_process.accused()) == {0, 1}


@pytest.mark.parametrize("responses", ["one class", "at random", "another's"])
def test_innocents_stay_under_the_bound_at_every_stop(responses):
    """The largest stake of each of 5,000 innocents over 200 answers, against what the bound allows."""
    rng = np.random.default_rng(2)
    predicted_labels = {
        "one class": np.full(200, 3),
        "at random": rng.integers(0, 10, 200),
        "another's": keyed_labels([bytes(32)], 200, 10)[0],
    }[responses]
    labels = keyed_labels([new_secret() for _ in range(5_000)], 200, 10)
    agreeing = np.cumsum(labels == predicted_labels, axis=1)
    highest = np.max([log_e_value(agreeing[:, n - 1], n, 10) for n in range(1, 201)], axis=0)

    for level in (0.5, 0.1, 1e-2, 1e-3):
        reached, allowed = (highest >= -np.log(level)).mean(), level
        assert reached <= allowed + 5 * np.sqrt(allowed / 5_000)
    assert (highest >= np.log(5_000 / 1e-6)).sum() == 0


def test_no_response_proves_nothing_and_may_be_queried_again():
    e_process = EProcess(KEYS, 200, 10)
    e_process.update(0, None)
    e_process.update(0, 4)

    assert e_process.queried == 1
    assert e_process.agreeing.sum() == (keyed_labels(KEYS, 1, 10)[:, 0] == 4).sum()


def test_an_invalid_response_is_refused_and_changes_nothing():
    e_process = EProcess(KEYS, 5, 10)
    e_process.update(0, 1)
    before = e_process.agreeing

    for trigger, response, sentence in (
        (5, 1, "Trigger 5 does not exist"),
        (0, 1, "already has a response"),
        (1, 10, "a class from 0 to 9"),
    ):
        with pytest.raises(CodeError, match=sentence):
            e_process.update(trigger, response)
    with pytest.raises(CodeError, match="alpha"):
        EProcess(KEYS, 5, 10, 0)
    assert np.array_equal(before, e_process.agreeing)
    assert e_process.queried == 1


def test_keys_do_not_show():
    assert repr(EProcess(KEYS, 5, 10)) == "EProcess(0 of 5 responses, 1000 recipients)"


@pytest.mark.parametrize("classes", [2, 3, 10, 1000, 65_535, 65_536])
def test_the_bound_is_never_below_the_exact_probability(classes):
    """Of so many agreeing answers of an innocent's, whatever the counts: exact in some hundred digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for n in (1, 2, 7, 60, 400):
            stakes = log_e_value(np.arange(n + 1), n, classes)
            assert not np.isnan(stakes).any()
            p = mpmath.mpf(1) / classes
            tail = mpmath.mpf(0)
            for k in range(n, -1, -1):
                tail += mpmath.binomial(n, k) * p**k * (1 - p) ** (n - k)
                assert float(mpmath.log(tail)) <= -stakes[k] + 1e-9


@pytest.mark.parametrize("classes", [2, 10, 65_536])
@pytest.mark.parametrize("n", [65_536, 10**6, MAX_RESPONSES])
def test_huge_counts_keep_their_digits(n, classes):
    """Around chance, where millions cancel to a few, against Laplace's integral of the same."""
    chance = n // classes
    for k in (0, chance, min(n, chance + 2), n):
        (log_wealth,) = log_e_value(np.array([k]), n, classes)
        assert not np.isnan(log_wealth)
        assert log_wealth <= k * np.log(classes) + 1e-3  # nobody wins more than who stakes all on every answer
    (at_chance,) = log_e_value(np.array([chance]), n, classes)
    p = 1 / classes
    half = np.log(np.sqrt(2 * np.pi * p * (1 - p) / n) / 2 / (1 - p))
    assert at_chance == pytest.approx(half, abs=0.8)
    assert at_chance < 0 or chance < 10


@pytest.mark.parametrize("classes", [0, 1, -3, 65_537, 10**12, float("nan")])
def test_no_such_classes_prove_anything(classes):
    for call in (
        lambda: log_e_value(np.array([3]), 3, classes),
        lambda: EProcess(KEYS[:3], 5, classes),
        lambda: keyed_labels(KEYS[:3], 5, classes),
    ):
        with pytest.raises(CodeError, match="2 to 65,536"):
            call()


@pytest.mark.parametrize(
    ("k", "n"),
    [(4, 3), (-1, 3), (np.nan, 3), (1, np.nan), (np.inf, np.inf), (1, np.inf), (1.5, 3), (1, 3.5), (5, 2**33)],
)
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(CodeError, match="are not possible"):
        log_e_value(np.array([k]), np.array([n]), 10)


@pytest.mark.parametrize("alpha", [0, -1e-6, 0.0501, 0.99, 1, 2, float("nan"), float("inf")])
def test_nobody_is_accused_at_such_an_alpha(alpha):
    with pytest.raises(CodeError, match=r"at most 0\.05"):
        EProcess(KEYS[:3], 5, 10, alpha)


@pytest.mark.parametrize("assigned_share", [0, -1, 1e-9, 1.5, float("nan"), float("inf"), -float("inf")])
def test_nobody_owns_such_a_share(assigned_share):
    for keys in (KEYS[:3], []):
        with pytest.raises(CodeError, match="choose a share"):
            EProcess(keys, 5, 10, assigned_share=assigned_share)


def test_no_triggers_and_nobody_to_accuse():
    with pytest.raises(CodeError, match="at least 1 trigger"):
        EProcess(KEYS[:3], 0, 10)
    e_process = EProcess([], 5, 10)
    e_process.update(0, 3)
    assert e_process.accused().tolist() == [] and e_process.log10_bounds().tolist() == []


@pytest.mark.parametrize("classes", [2, 65_536])
def test_at_the_least_alpha_and_the_most_classes_a_copy_is_accused_and_innocents_are_not(classes):
    own = keyed_labels(KEYS[7:8], 3000, classes)[0]
    e_process = EProcess(KEYS, 3000, classes, alpha=5e-324)
    for trigger, response in enumerate(own):
        e_process.update(trigger, int(response))

    assert e_process.accused().tolist() == [7]
    assert np.isfinite(e_process.log10_bounds()).all()
