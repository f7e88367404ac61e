from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.evaluation import Trial, cheapest_escape, frontier
from tests.helpers.evaluation_runs import make_trial


PLAIN = Trial(
    kind="single",
    attack="prune",
    what="prune",
    step=0,
    strength=0.5,
    accuracy=0.9,
    agreement=1.0,
    scores=(60.0,),
    log10_bounds=(-300.0,),
    caught=(True,),
    shares=(1.0,),
    threshold=6.9,
    innocents=100,
    innocents_accused=0,
    highest_innocent=3.0,
    histogram=(100,),
    unaligned=(0, 3.0),
    aligned=0,
    drift=0.01,
    layers=(60.0,),
    seconds=1.0,
)
trials = st.lists(
    st.builds(
        lambda accuracy, score: make_trial(PLAIN, accuracy / 10, score, score > 5),
        st.integers(0, 10),
        st.integers(0, 10).map(float),
    ),
    min_size=1,
    max_size=12,
)


@given(trials)
def test_every_trial_is_on_the_front_or_dominated_by_one_that_is(found):
    front = frontier(found)

    assert all(trial in found for trial in front)
    for trial in found:
        assert any(best.accuracy >= trial.accuracy and best.score <= trial.score for best in front)
    for better, worse in pairwise(front):
        assert better.accuracy > worse.accuracy
        assert better.score > worse.score


@given(trials)
def test_the_cost_is_that_of_the_most_accurate_escape(found):
    cost = cheapest_escape("prune", found, PLAIN)
    under = [trial.accuracy for trial in found if not trial.accused]

    assert (cost.loss is None) == (cost.escape is None) == (not under)
    if cost.escape is not None:
        assert cost.escape.accuracy == max(under)
        assert cost.loss == PLAIN.accuracy - max(under)
    assert cost.least_score == min(trial.score for trial in found)
    assert cost.highest_accuracy == max(trial.accuracy for trial in found)


@given(trials)
def test_scores_of_those_who_are_not_accused_decide_nothing_that_is_published(found):
    shown = [trial.redacted() for trial in found]
    others = [trial if trial.accused else make_trial(trial, trial.accuracy, 99.0, accused=False) for trial in found]
    cost = cheapest_escape("prune", shown, PLAIN)

    assert frontier(shown) == frontier([trial.redacted() for trial in others])
    assert cost == cheapest_escape("prune", [trial.redacted() for trial in others], PLAIN)
    assert cost.loss == cheapest_escape("prune", found, PLAIN).loss
    assert (cost.lowest_score_text == "below the bound") == (not all(trial.accused for trial in found))


def test_a_mark_that_survives_has_no_escape():
    cost = cheapest_escape("prune", [PLAIN, make_trial(PLAIN, 0.2, 9.0)], PLAIN)

    assert cost.loss_text == "no escape"
    assert cheapest_escape("prune", [make_trial(PLAIN, 0.805, 2.0, accused=False)], PLAIN).loss_text == "9.5 points"
    assert cheapest_escape("prune", [make_trial(PLAIN, 0.95, 2.0, accused=False)], PLAIN).loss_text == "nothing"
