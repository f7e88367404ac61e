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
from hf_fingerprint.evaluation.report import FILES, costs, markdown, row, summarise, tables
from tests.helpers.evaluation_runs import made_up
from tests.helpers.refusals import refused


HOSTILE = "org/<script>alert(1)</script>|`x`\n# big\x1b[2J\u202e"


def test_all_three_files_are_written_and_written_over(evaluation, tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("from an earlier run")
    written = write_report(evaluation, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert json.loads(written.results.read_text())["copy_accuracy"] == evaluation.copy.accuracy
    assert written.page.read_text().endswith("</html>\n")
    assert written.table.read_text() == markdown(evaluation)


def other_figures(point, seed):
    """A point whose figures of those who are not accused are others."""
    rng = np.random.default_rng(seed)

    def other(values):
        return tuple(v if caught else float(rng.normal()) for v, caught in zip(values, point.caught, strict=True))

    return replace(
        point,
        scores=other(point.scores),
        log10_bounds=other(point.log10_bounds),
        highest_innocent=float(rng.normal(4)),
        histogram=tuple(rng.integers(0, 50, len(point.histogram)).tolist()),
        unaligned=(point.unaligned[0], float(rng.normal(4))),
        layers=point.layers if point.caught[:1] == (True,) else tuple(rng.normal(size=len(point.layers)).tolist()),
    )


def attacked(evaluation):
    """The evaluation with some who got away: of a sweep its last, of a coalition the first, and a whole one."""
    (mixed,) = evaluation.of("collusion")
    gone = replace(evaluation.sweeps["int"][0], caught=(False,), step=9)
    partly = [replace(mixed, caught=caught) for caught in ((False, True), (True, False), (False, False))]
    return replace(evaluation, points=(*evaluation.points, gone, *partly))


def written_files(evaluation, folder):
    folder.mkdir()
    written = write_report(evaluation, folder)
    return {path.name: path.read_text() for path in (written.results, written.table, written.page)}


@pytest.mark.parametrize("copy_accused", [True, False])
def test_nothing_in_a_report_depends_on_a_score_of_somebody_who_is_not_accused(evaluation, tmp_path, copy_accused):
    some = attacked(evaluation)
    points = tuple(replace(p, caught=(copy_accused,)) if p.kind == "copy" else p for p in some.points)
    reports = [
        written_files(replace(some, points=made, all_scores=False), tmp_path / str(seed))
        for seed in range(3)
        for made in [points if not seed else tuple(other_figures(point, seed) for point in points)]
    ]
    everything = written_files(replace(some, points=points), tmp_path / "all")

    assert reports[0] == reports[1] == reports[2]
    for name, text in everything.items():
        assert text != reports[0][name]


def test_an_evaluation_with_all_scores_says_that_it_is_not_to_be_published(evaluation, published, tmp_path):
    full, shown = written_files(evaluation, tmp_path / "all"), written_files(published, tmp_path / "shown")
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
    told = json.loads(json.dumps(summarise(evaluation), allow_nan=False))
    read = evaluation.points[1:]

    assert evaluation.unmarked.threshold is None
    assert told["innocents"]["scored"] == sum(point.innocents for point in read)
    assert told["innocents"]["accused"] == 0
    assert told["innocents"]["highest_score"] == max(point.highest_innocent for point in read)
    assert told["colluders"] == {"mixed": 2, "caught": 2, "gave_a_twentieth": 2, "of_those_caught": 2}
    assert len(told["points"]) == len(evaluation.points)
    assert told["versions"]["hf_fingerprint"] == hf_fingerprint.__version__
    assert {"torch", "timm", "python"} <= told["versions"].keys()
    assert told["registration"]["recipients_planned"] == 4


def test_who_gave_less_than_a_twentieth_is_counted_apart(evaluation):
    (mixed,) = evaluation.of("collusion")
    uneven = replace(mixed, shares=(0.97, 0.03), caught=(True, False), innocents_accused=3)
    told = summarise(replace(evaluation, points=(*evaluation.points[:-1], uneven)))

    assert told["colluders"] == {"mixed": 2, "caught": 1, "gave_a_twentieth": 1, "of_those_caught": 1}
    assert told["innocents"]["accused"] == 3


def test_the_cheapest_escape_comes_first_and_those_without_last(evaluation):
    plain = evaluation.sweeps["half"][0]
    copy = made_up(evaluation.copy, 0.9, 60.0)
    points = [
        made_up(plain, 0.9, 50.0, attack="never"),
        made_up(plain, 0.3, 2.0, accused=False, attack="dear"),
        made_up(plain, 0.8, 2.0, accused=False, attack="cheap"),
    ]
    found = costs(replace(evaluation, points=(evaluation.unmarked, copy, *points)))

    assert [cost.attack for cost in found] == ["cheap", "dear", "never"]
    assert [cost.words for cost in found] == ["10.0 points", "60.0 points", "not lost"]


def test_the_tables_have_a_row_for_every_suspect_and_every_attack(evaluation):
    lines = markdown(evaluation).splitlines()
    suspects, attacks, coalitions = tables(evaluation)

    assert suspects.row_count == len(evaluation.points)
    assert attacks.row_count == len(evaluation.sweeps)
    assert len([line for line in lines if line.startswith("|")]) == len(evaluation.points) + len(attacks.rows) + 7
    assert lines[-1] == "| average | 2 | 1 | 1 | 1 | 2 of 2 |"
    assert coalitions.row_count == 1
    assert row(evaluation.copy)[0] == "a copy as issued"
    assert row(evaluation.copy)[6:] == ("1 of 1", "0 of 301")


def test_names_from_outside_are_no_markup(evaluation):
    named = replace(evaluation, model=HOSTILE, data=HOSTILE, skipped={HOSTILE: HOSTILE})
    text = markdown(named)

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
