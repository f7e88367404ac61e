from dataclasses import replace

from examples.benchmarks.ancestor_tables import before_table
from examples.benchmarks.attack_trials import KeptTrial, add_trials, read_trials
from tests.examples.test_bench_mergekit import TRIAL


def single(attack, plain, score, strength=1.0):
    caught = plain > 6
    return replace(
        TRIAL,
        kind="single",
        attack=attack,
        what=f"{attack} {strength}",
        strength=strength,
        scores=(score,),
        plain_scores=(plain,),
        plain_caught=(caught,),
    )


def test_runs_of_two_days_add_up_and_a_suspect_that_was_measured_again_replaces_the_earlier_one(tmp_path):
    file = tmp_path / "trials.jsonl"
    first, other = single("prune", 100.0, 100.0), single("noise", 50.0, 60.0)
    add_trials(file, [KeptTrial.of("vit", "abc0123", first), KeptTrial.of("resnet", "abc0123", first)])

    again = replace(first, accuracy=0.5)
    kept = add_trials(file, [KeptTrial.of("vit", "def4567", other), KeptTrial.of("vit", "def4567", again)])

    found = {(each.model, each.trial.attack): (each.commit, each.trial.accuracy) for each in kept}
    assert found == {
        ("resnet", "prune"): ("abc0123", 0.9),
        ("vit", "prune"): ("def4567", 0.5),
        ("vit", "noise"): ("def4567", 0.9),
    }
    assert [each.trial.attack for each in kept] == ["prune", "prune", "noise"]  # as in the suite
    assert [each.place for each in read_trials(file)] == [each.place for each in kept]


def test_a_kept_trial_has_no_score_of_anybody_who_is_not_accused(tmp_path):
    file = tmp_path / "trials.jsonl"
    pair = replace(TRIAL, kind="collusion", scores=(99.0, 5.4321), log10_bounds=(-9.0, -1.0), caught=(True, False))
    add_trials(file, [KeptTrial.of("vit", "abc0123", replace(pair, shares=(0.5, 1 / 3), histogram=(1, 2)))])

    (kept,) = read_trials(file)
    assert kept.trial.scores == (99.0, None)
    assert (kept.trial.highest_innocent, kept.trial.histogram, kept.trial.shares) == (None, (), (0.5, 0.33333))
    assert "5.4" not in file.read_text()


def test_scores_are_compared_with_those_of_the_plain_reading_apart_for_trained_suspects():
    trials = [TRIAL, single("prune", 100.0, 90.0), single("noise", 50.0, 60.0), single("finetune", 60.0, 90.0)]
    trials.append(single("finetune", 195.0, 195.0, 1e-5))  # nothing to win

    rows = dict(row[:2] for row in before_table({"vit": trials}).rows)

    assert rows == {
        "score / the plain reading's, 2 suspects without fine-tuning: lowest (prune 1, vit)": "0.90 (!)",
        "the same, median of suspects without fine-tuning": "1.05",
        "score / the plain reading's, 1 suspects that fine-tuning cost a tenth: lowest (finetune 1, vit)": ("1.50"),
        "the same, median of suspects that fine-tuning cost a tenth": "1.50",
    }
