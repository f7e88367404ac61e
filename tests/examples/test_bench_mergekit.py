from dataclasses import replace

import pytest
import torch

from examples.benchmarks.ancestor_tables import ancestor_table, contributors_table, unique_names, without_ancestor
from examples.benchmarks.attacks import make_ancestor, make_base
from examples.benchmarks.mergekit import OURS, SCRIPT, Side, compare
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.evaluation import Trial, Verdict


pytestmark = pytest.mark.integration

TRIAL = Trial(
    kind="copy",
    attack="a copy as issued",
    what="a copy as issued",
    step=0,
    strength=1.0,
    accuracy=0.9,
    agreement=1.0,
    scores=(200.0,),
    log10_bounds=(-99.0,),
    caught=(True,),
    shares=(1.0,),
    threshold=6.0,
    innocents=100,
    innocents_accused=0,
    highest_innocent=3.0,
    histogram=(),
    unaligned=(0, 3.0),
    aligned=0,
    drift=0.1,
    layers=(),
    seconds=1.0,
)


def verdict(*scores, innocents_accused=0):
    count, caught = len(scores), tuple(score > 6 for score in scores)
    return Verdict(scores, (-9.0,) * count, caught, 6.0, 100, innocents_accused, 3.0, (), (0, 3.0), 0, 9, 0.9, 0.1, ())


def trial(attack, accuracy, *caught, strength=0.5):
    return replace(
        TRIAL,
        kind="collusion" if len(caught) > 1 else "single",
        attack=attack,
        accuracy=accuracy,
        strength=strength,
        scores=(1.0,) * len(caught),
        caught=caught,
    )


def test_both_sides_are_shown_and_a_gap_or_an_accused_innocent_is_marked():
    near, far = Side(0.9, verdict(20.0, 30.0)), Side(0.8, verdict(4.0, 8.0, innocents_accused=1))

    merges, figures = compare({"ties": (near, near), "della": (near, far)})

    assert merges.rows[1] == ("della", "2", "90.0%", "20 - 30", "2 of 2", "80.0%", "4 - 8", "1 of 2")
    assert [row[1] for row in figures.rows] == ["76.0% (!)", "1 of 400 (!)"]
    assert figures.rows[0][0] == "largest gap of mean scores (della)"
    assert [row[1] for row in compare({"ties": (near, near)})[1].rows] == ["0.0%", "0 of 200"]


def test_every_merge_of_mergekit_has_one_of_ours():
    recipes = SCRIPT.read_text().split("RECIPES = {")[1].split("}\n")[0].splitlines()
    named = {line.split('"')[1] for line in recipes if '": (' in line}

    assert named | {"rank-0.1", "rank-0.03"} == OURS.keys()


def test_the_table_says_where_the_mark_is_lost_and_where_the_control_is_as_good():
    trials = [
        TRIAL,
        trial("ancestor-weights", 0.7, False),
        trial("delta-rank", 0.88, True),
        trial("delta-rank", 0.8, False, strength=0.1),
        trial("delta-dare", 0.65, False),
        trial("delta-int", 0.85, True),
        trial("average-then-delta-rank", 0.89, True, True, False),
        trial("average-then-delta-rank", 0.75, False, False, False, strength=0.1),
    ]

    assert ancestor_table({"vit": trials}).rows == (
        ("ancestor-weights", "1", "control: 20.0 points"),
        ("delta-rank", "1", "at 0.1: 10.0 points"),
        ("average-then-delta-rank", "3", "at 0.1: 15.0 points"),
        ("delta-dare", "1", "at 0.5: 25.0 points, control"),
        ("delta-int", "1", "not lost (to 5.0 points)"),
    )
    assert contributors_table({"vit": trials}).rows == (("average-then-delta-rank", "3", "2 of 3", "0 of 3"),)


def test_the_tables_are_there_for_an_ancestor_that_is_not_registered_too():
    kept = replace(trial("delta-rank", 0.88, True), blind_caught=(False,), blind_scores=(1.0,))
    trials = [replace(TRIAL, blind_caught=(True,), blind_scores=(99.0,)), trial("ancestor-weights", 0.7, False), kept]
    blind = [p for each in trials for p in without_ancestor(each)]

    assert [p.attack for p in blind] == ["a copy as issued", "delta-rank"]
    assert [p.accused for p in blind] == [True, False]
    tables = unique_names([ancestor_table({"vit": trials})] * 2)
    assert [table.name for table in tables] == ["ancestor", "ancestor-unregistered"]


def test_a_tuned_model_has_an_ancestor_of_the_same_weights_and_other_classes(tmp_path):
    images = torch.randn(40, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ancestor = make_ancestor("vit-tuned", tmp_path / "ancestor", images, 0.002)
    base = make_base("vit-tuned", tmp_path / "base", images, torch.arange(40) % 10, 0.002, ancestor)

    with open_checkpoint(ancestor) as one, open_checkpoint(base) as other:
        shapes = [{name: info.shape for name, info in each.tensors.items()} for each in (one, other)]
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {"head.weight", "head.bias"}
    assert make_ancestor("vit", tmp_path / "none", images, 1.0) is None
    assert make_ancestor("vit-tuned", tmp_path / "ancestor", images, 1.0) == ancestor
    with pytest.raises(SystemExit, match="make it first"):
        make_base("vit-tuned", tmp_path / "other", images, images, 1.0)
