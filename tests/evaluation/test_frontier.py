from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.evaluation import Point, cheapest, frontier
from tests.helpers.evaluation_runs import made_up


PLAIN = Point(
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
points = st.lists(
    st.builds(
        lambda accuracy, score: made_up(PLAIN, accuracy / 10, score, score > 5),
        st.integers(0, 10),
        st.integers(0, 10).map(float),
    ),
    min_size=1,
    max_size=12,
)


@given(points)
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(found):
    front = frontier(found)

    assert all(point in found for point in front)
    for point in found:
        assert any(best.accuracy >= point.accuracy and best.score <= point.score for best in front)
    for better, worse in pairwise(front):
        assert better.accuracy > worse.accuracy
        assert better.score > worse.score


@given(points)
def test_the_cost_is_that_of_the_most_accurate_point_under_the_bound(found):
    cost = cheapest("prune", found, PLAIN)
    under = [point.accuracy for point in found if not point.accused]

    assert (cost.loss is None) == (cost.escape is None) == (not under)
    if cost.escape is not None:
        assert cost.escape.accuracy == max(under)
        assert cost.loss == PLAIN.accuracy - max(under)
    assert cost.least_score == min(point.score for point in found)
    assert cost.most_kept == max(point.accuracy for point in found)


@given(points)
def test_scores_of_those_who_are_not_accused_decide_nothing_that_is_published(found):
    shown = [point.published() for point in found]
    others = [point if point.accused else made_up(point, point.accuracy, 99.0, accused=False) for point in found]
    cost = cheapest("prune", shown, PLAIN)

    assert frontier(shown) == frontier([point.published() for point in others])
    assert cost == cheapest("prune", [point.published() for point in others], PLAIN)
    assert cost.loss == cheapest("prune", found, PLAIN).loss
    assert (cost.lowest == "below the bound") == (not all(point.accused for point in found))


def test_a_mark_that_never_goes_is_not_lost():
    cost = cheapest("prune", [PLAIN, made_up(PLAIN, 0.2, 9.0)], PLAIN)

    assert cost.words == "not lost"
    assert cheapest("prune", [made_up(PLAIN, 0.805, 2.0, accused=False)], PLAIN).words == "9.5 points"
    assert cheapest("prune", [made_up(PLAIN, 0.95, 2.0, accused=False)], PLAIN).words == "nothing"
