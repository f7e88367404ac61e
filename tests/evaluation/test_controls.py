from dataclasses import replace
from functools import partial

import pytest
from safetensors.torch import load_file, save_file

from hf_fingerprint.evaluation.coalition_outcomes import outcomes
from hf_fingerprint.evaluation.controls import KEPT, LOST, NO_BETTER, control_of, control_table, with_controls
from hf_fingerprint.evaluation.frontier import cheapest_escape
from hf_fingerprint.evaluation.report import costs, render_markdown, summarize
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import make_trial, run
from tests.helpers.small_models import save_timm


pytestmark = pytest.mark.integration

ATTACKS = ("delta-rank", "average-then-delta-rank")


@pytest.fixture(scope="module")
def ancestor(place):
    """The evaluated model's ancestor, with other classes."""
    import torch

    folder = save_timm(place / "ancestor", num_classes=7, img_size=32)
    torch.manual_seed(1)
    found, state = load_file(folder / "model.safetensors"), load_file(place / "model" / "model.safetensors")
    near = {n: t + 0.02 * t.std() * torch.randn_like(t) if t.ndim > 1 else t for n, t in state.items()}
    save_file({n: near[n] if near[n].shape == t.shape else t for n, t in found.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def evaluated(place, ancestor):
    return run(place, place / "controls", ATTACKS, ancestor=ancestor, quick=True, all_scores=True)


def test_attacks_with_the_ancestor_run_next_to_their_control(evaluated):
    assert list(evaluated.sweeps) == ["ancestor-weights", "delta-rank"]
    assert [trial.strength for trial in evaluated.sweeps["delta-rank"]] == [0.5, 0.05, 0.01]
    assert [trial.strength for trial in evaluated.of("collusion")] == [0.5, 0.05, 0.01]
    assert evaluated.skipped == {}
    assert not evaluated.sweeps["ancestor-weights"][0].accused
    assert all(trial.innocents_accused == 0 for trial in evaluated.trials)
    assert evaluated.ancestor.endswith("ancestor")
    assert summarize(evaluated)["data"]["attacker_has_ancestor"] == evaluated.ancestor


def test_another_ancestor_is_another_evaluation_and_the_same_resumes(place, ancestor, evaluated, monkeypatch):
    from hf_fingerprint.evaluation import Testbed

    seen = []
    trace_suspect = Testbed.trace_suspect
    monkeypatch.setattr(Testbed, "trace_suspect", lambda self, *rest: seen.append(1) or trace_suspect(self, *rest))

    assert run(place, place / "controls", ATTACKS, ancestor=ancestor, quick=True, all_scores=True) == evaluated
    assert seen == []
    run(place, place / "controls", ("delta-rank",), ancestor=place / "model", quick=True)
    assert len(seen) == 6


def test_without_an_ancestor_the_group_is_left_out_with_the_reason(place):
    found = run(place, place / "controls", ("half", *ATTACKS))

    assert list(found.sweeps) == ["half"]
    assert found.of("collusion") == []
    assert found.skipped == {
        "ancestor": "The attacks of this group need the public ancestor: give it with --ancestor."
    }
    assert found.ancestor is None


def test_a_model_of_other_shapes_is_not_an_ancestor(place, tmp_path):
    other = save_timm(tmp_path / "other", "test_resnet", num_classes=4)

    said = refused(partial(run, place, place / "controls", ATTACKS, ancestor=other))
    assert "less than half of the weights" in said
    missing = partial(run, place, place / "controls", ATTACKS, ancestor=tmp_path / "ancestor")
    assert str(tmp_path / "ancestor") in refused(missing)


def judged(evaluated, accuracy, accused, control_accuracy):
    control = make_trial(evaluated.copy, control_accuracy, 0.0, accused=False, attack="ancestor-weights")
    trial = make_trial(evaluated.copy, accuracy, 9.0, accused=accused, attack="delta-rank")
    return [control, trial]


@pytest.mark.parametrize(
    ("accuracy", "accused", "control", "outcome"),
    [(0.8, True, 0.9, KEPT), (0.8, False, 0.7, LOST), (0.8, False, 0.8, NO_BETTER), (0.8, False, 0.9, NO_BETTER)],
)
def test_a_lost_mark_counts_where_the_suspect_is_better_than_the_control(
    evaluated, accuracy, accused, control, outcome
):
    trials = judged(evaluated, accuracy, accused, control)

    (found,) = with_controls(trials)

    assert found.outcome == outcome
    assert control_table(trials).rows == (
        ("delta-rank", "1", "1", "80.0%", f"{control:.1%}", f"{int(accused)} of 1", "1 of 1", outcome),
    )
    cost = cheapest_escape("delta-rank", trials[1:], evaluated.copy, control_of("delta-rank", trials))
    assert cost.no_better_than_control == (outcome == NO_BETTER)
    assert cost.loss_text.endswith("no better than the control") == (outcome == NO_BETTER)


def test_escapes_that_are_no_better_than_the_control_come_after_those_that_are(evaluated):
    trials = judged(evaluated, 0.9, False, 0.95)
    trials += [make_trial(evaluated.copy, 0.5, 0.0, accused=False, kind="single", attack="prune")]
    trials = [replace(trial, kind="single") for trial in trials]
    found = replace(evaluated, trials=(evaluated.unmarked, evaluated.copy, *trials))

    assert [cost.attack for cost in costs(found)] == ["prune", "delta-rank"]
    text = render_markdown(found)
    assert "| delta-rank | 1 | 1 | 90.0% | 95.0% | 0 of 1 | 1 of 1 | lost, no better than the control |" in text
    assert summarize(found)["controls"][0]["mark"] == NO_BETTER


def test_coalitions_are_counted_by_strength_and_named_with_it(evaluated):
    found = outcomes(evaluated.of("collusion"))

    assert [outcome.label for outcome in found] == [f"average-then-delta-rank {kept}" for kept in (0.5, 0.05, 0.01)]
    assert [outcome.runs for outcome in found] == [1, 1, 1]
