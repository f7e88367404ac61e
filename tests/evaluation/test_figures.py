from dataclasses import replace
from xml.etree import ElementTree

import pytest

from hf_fingerprint.evaluation import figures
from tests.helpers.evaluation_runs import make_trial


pytestmark = pytest.mark.integration


@pytest.fixture
def some(evaluation):
    """The copy at 90 %, pruned to 85 % and 30 % with the mark gone, and two coalitions of each of two kinds."""
    copy = make_trial(evaluation.copy, 0.9, 60.0)
    mild = make_trial(evaluation.sweeps["half"][0], 0.85, 40.0, attack="prune", strength=0.5)
    hard = replace(make_trial(mild, 0.3, 2.0, accused=False, strength=0.9), layers=tuple(0.5 for _ in copy.layers))
    (pair,) = evaluation.of("collusion")
    three = replace(
        pair,
        scores=(9.0, 8.0, 2.0),
        log10_bounds=(-15.0, -12.0, 0.0),
        caught=(True, True, False),
        shares=(0.5, 0.47, 0.03),
    )
    mixed = [replace(p, attack=f"median{after}") for after in ("", "-then-int8") for p in (pair, three)]
    return replace(evaluation, trials=(evaluation.unmarked, copy, mild, hard, *mixed), chance=0.1)


def circles(svg):
    return [(mark.get("class"), mark.find("title").text) for mark in ElementTree.fromstring(svg).iter("circle")]


def test_an_attacks_path_begins_at_the_copy_and_shows_who_is_accused(some):
    ((name, svg),) = figures.draw_attacks(some)
    kinds, titles = zip(*circles(svg), strict=True)

    assert name == "prune"
    assert kinds == ("accused", "accused", "escaped")
    assert titles[0].startswith("a copy as issued: accuracy 90.0%, score 60.0, accused")
    assert titles[2].endswith("accuracy 30.0%, score 2.0, nobody is accused")


def test_the_frontier_has_every_suspect_but_the_base(some):
    marks = circles(figures.draw_frontier(some))

    assert [kind for kind, _ in marks] == [
        "accused single",
        "accused single",
        "escaped single",
        *["accused several"] * 4,
    ]


def test_coalitions_are_drawn_by_strategy_and_colored_by_what_followed(some):
    ((name, svg),) = figures.draw_coalitions(some)
    marks = circles(svg)

    assert name == "median"
    assert figures.follow_ups(some) == ["no follow-up", "int8"]
    assert [kind for kind, _ in marks] == ["mark s0", "mark s0", "mark s1", "mark s1"]
    assert "2 of 2 accused" in marks[0][1]
    assert marks[1][1].endswith("2 of 3 accused, 2 of 2 main contributors")


def test_innocents_are_counted_over_all_suspects_but_the_base(some):
    drawn = ElementTree.fromstring(figures.draw_innocents(some))
    counted = [int(mark.find("title").text.split()[0].replace(",", "")) for mark in drawn.iter("rect")]
    texts = [text.text for text in drawn.iter("text")]

    assert sum(counted) == sum(trial.innocents for trial in some.trials[1:])
    assert "accused from here" in texts
    assert f"highest {max(p.highest_innocent for p in some.trials):.1f}" in texts


def test_the_highest_without_alignment_is_shown_where_it_differs(some):
    apart = replace(some.trials[1], unaligned=(0, 4.9))

    assert "without alignment 4.9" in figures.draw_innocents(replace(some, trials=(some.trials[0], apart)))
    assert "without alignment" not in figures.draw_innocents(some)


def test_layers_of_those_who_are_not_accused_are_shown_to_who_asks(some):
    gone = replace(some.trials[2], accuracy=0.89, caught=(False,), strength=0.7, scores=(1.0,))
    trials = (*some.trials, gone)
    rows = []
    for all_scores in (True, False):
        drawn = ElementTree.fromstring(figures.draw_layers(replace(some, trials=trials, all_scores=all_scores)))
        rows.append([text.text for text in drawn.iter("text") if text.get("class") is None])
    unaccused = replace(some, trials=(some.trials[0], replace(some.copy, caught=(False,))), all_scores=False)

    assert rows == [["as issued", "prune 0.7"], ["as issued", "prune 0.5"]]
    assert figures.draw_layers(unaccused) == ""


def test_layers_are_shown_for_the_hardest_attack_that_leaves_most_of_the_model(some):
    drawn = ElementTree.fromstring(figures.draw_layers(some))
    rows = [text.text for text in drawn.iter("text") if text.get("class") is None]

    assert rows == ["as issued", "prune 0.5"]
    assert len(list(drawn.iter("rect"))) == 2 * len(some.carriers)
