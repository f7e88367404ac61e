import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

import hf_fingerprint
from hf_fingerprint.errors import StorageError
from hf_fingerprint.evaluation import report, write_report
from hf_fingerprint.evaluation.page import NOT_TO_PUBLISH
from hf_fingerprint.evaluation.report import FILES, costs, render_markdown, report_tables, summarize, trial_row
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import make_trial


pytestmark = pytest.mark.integration


HOSTILE = "org/<script>alert(1)</script>|`x`\n# big\x1b[2J\u202e"


def test_all_three_files_are_written_and_written_over(evaluation, tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("from an earlier run")
    written = write_report(evaluation, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert json.loads(written.results.read_text())["copy_accuracy"] == evaluation.copy.accuracy
    assert written.page.read_text().endswith("</html>\n")
    assert written.table.read_text() == render_markdown(evaluation)


def other_figures(trial, seed):
    """A trial with other figures for recipients who are not accused."""
    rng = np.random.default_rng(seed)

    def other(values):
        return tuple(v if caught else float(rng.normal()) for v, caught in zip(values, trial.caught, strict=True))

    return replace(
        trial,
        scores=other(trial.scores),
        log10_bounds=other(trial.log10_bounds),
        highest_innocent=float(rng.normal(4)),
        histogram=tuple(rng.integers(0, 50, len(trial.histogram)).tolist()),
        unaligned=(trial.unaligned[0], float(rng.normal(4))),
        layers=trial.layers if trial.caught[:1] == (True,) else tuple(rng.normal(size=len(trial.layers)).tolist()),
    )


def attacked(evaluation):
    """The evaluation with some who got away: of a sweep its last, of a coalition the first, and a whole one."""
    (mixed,) = evaluation.of("collusion")
    gone = replace(evaluation.sweeps["int"][0], caught=(False,), step=9)
    partly = [replace(mixed, caught=caught) for caught in ((False, True), (True, False), (False, False))]
    return replace(evaluation, trials=(*evaluation.trials, gone, *partly))


def written_files(evaluation, folder):
    folder.mkdir()
    written = write_report(evaluation, folder)
    return {path.name: path.read_text() for path in (written.results, written.table, written.page)}


@pytest.mark.parametrize("copy_accused", [True, False])
def test_nothing_in_a_report_depends_on_the_score_of_a_recipient_who_is_not_accused(
    evaluation, tmp_path, copy_accused
):
    some = attacked(evaluation)
    trials = tuple(replace(p, caught=(copy_accused,)) if p.kind == "copy" else p for p in some.trials)
    reports = [
        written_files(replace(some, trials=made, all_scores=False), tmp_path / str(seed))
        for seed in range(3)
        for made in [trials if not seed else tuple(other_figures(trial, seed) for trial in trials)]
    ]
    everything = written_files(replace(some, trials=trials), tmp_path / "all")

    assert reports[0] == reports[1] == reports[2]
    for name, text in everything.items():
        assert text != reports[0][name]


def test_an_evaluation_with_all_scores_says_that_it_is_not_to_be_published(evaluation, redacted, tmp_path):
    full, shown = written_files(evaluation, tmp_path / "all"), written_files(redacted, tmp_path / "shown")
    summary = json.loads(shown["results.json"])

    assert NOT_TO_PUBLISH in full["report.html"]
    assert NOT_TO_PUBLISH not in shown["report.html"]
    assert json.loads(full["results.json"])["all_scores"] is True
    assert summary["all_scores"] is False
    assert summary["innocents"] == json.loads(full["results.json"])["innocents"] | {
        "highest_score": None,
        "highest_score_without_alignment": None,
    }
    assert "highest innocent score" not in " ".join(shown["report.html"].split())


def test_the_summary_counts_innocents_and_colluders(evaluation):
    summary = json.loads(json.dumps(summarize(evaluation), allow_nan=False))
    read = evaluation.trials[1:]

    assert evaluation.unmarked.threshold is None
    assert summary["innocents"]["scored"] == sum(trial.innocents for trial in read)
    assert summary["innocents"]["accused"] == 0
    assert summary["innocents"]["highest_score"] == max(trial.highest_innocent for trial in read)
    assert summary["colluders"] == {"mixed": 2, "caught": 2, "main_contributors": 2, "main_contributors_caught": 2}
    assert len(summary["trials"]) == len(evaluation.trials)
    assert summary["versions"]["hf_fingerprint"] == hf_fingerprint.__version__
    assert {"torch", "timm", "python"} <= summary["versions"].keys()
    assert summary["registration"]["expected_recipients"] == 4


def test_who_gave_less_than_a_twentieth_is_counted_apart(evaluation):
    (mixed,) = evaluation.of("collusion")
    uneven = replace(mixed, shares=(0.97, 0.03), caught=(True, False), innocents_accused=3)
    summary = summarize(replace(evaluation, trials=(*evaluation.trials[:-1], uneven)))

    assert summary["colluders"] == {"mixed": 2, "caught": 1, "main_contributors": 1, "main_contributors_caught": 1}
    assert summary["innocents"]["accused"] == 3


def test_the_cheapest_escape_comes_first_and_those_without_last(evaluation):
    plain = evaluation.sweeps["half"][0]
    copy = make_trial(evaluation.copy, 0.9, 60.0)
    trials = [
        make_trial(plain, 0.9, 50.0, attack="never"),
        make_trial(plain, 0.3, 2.0, accused=False, attack="dear"),
        make_trial(plain, 0.8, 2.0, accused=False, attack="cheap"),
    ]
    found = costs(replace(evaluation, trials=(evaluation.unmarked, copy, *trials)))

    assert [cost.attack for cost in found] == ["cheap", "dear", "never"]
    assert [cost.loss_text for cost in found] == ["10.0 points", "60.0 points", "no escape"]


def test_the_tables_have_a_row_for_every_suspect_and_every_attack(evaluation):
    lines = render_markdown(evaluation).splitlines()
    suspects, attacks, coalitions = report_tables(evaluation)

    assert len(suspects.rows) == len(evaluation.trials)
    assert len(attacks.rows) == len(evaluation.sweeps)
    assert len([line for line in lines if line.startswith("|")]) == len(evaluation.trials) + len(attacks.rows) + 7
    assert lines[-1] == "| average | 2 | 1 | 1 | 1 | 2 of 2 |"
    assert len(coalitions.rows) == 1
    assert trial_row(evaluation.copy)[0] == "a copy as issued"
    assert trial_row(evaluation.copy)[6:] == ("1 of 1", "0 of 301")


def test_an_evaluation_prints_its_tables(evaluation):
    assert "a copy as" in str(evaluation) and "caught" in str(evaluation)
    assert repr(evaluation).startswith("Evaluation(model=")
    assert json.dumps(evaluation.to_dict(), allow_nan=False)
    assert "<script>" not in replace(evaluation, model=HOSTILE, skipped={HOSTILE: HOSTILE})._repr_html_()


def test_names_from_outside_are_no_markup(evaluation):
    named = replace(evaluation, model=HOSTILE, data=HOSTILE, skipped={HOSTILE: HOSTILE})
    text = render_markdown(named)

    assert "<script>" not in text
    assert "\n# big" not in text
    assert text.count("alert(1)") == 4
    assert not set("\x1b\u202e") & set(text)


def test_a_full_disk_leaves_the_report_of_an_earlier_run_and_nothing_half_written(evaluation, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "results.json").write_text("from an earlier run")
    monkeypatch.setattr(report, "sync", full)

    assert f"The disk of {tmp_path} is full" in refused(write_report, evaluation, tmp_path, error=StorageError)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"results.json": "from an earlier run"}
