import errno
import json
import os
from dataclasses import replace

import pytest
from filelock import FileLock

from hf_fingerprint.errors import StorageError
from hf_fingerprint.evaluation import Trial
from hf_fingerprint.evaluation.trials import PRIVATE, RESULTS, ResultStore, open_evaluation_folder
from hf_fingerprint.sharing import job_key
from tests.helpers.error_checks import refused
from tests.helpers.evaluation_runs import make_trial


pytestmark = pytest.mark.integration


def kept_in(folder):
    return folder / PRIVATE / RESULTS


def opens(folder):
    with open_evaluation_folder(folder):
        pass


def test_a_trial_reads_as_it_was_written(evaluation, tmp_path):
    store = ResultStore(tmp_path)
    kept = [store.add(str(i), trial) for i, trial in enumerate(evaluation.trials)]

    assert list(ResultStore(tmp_path).trials.values()) == kept == list(evaluation.trials)


def test_what_is_not_finite_is_null_in_the_file(evaluation, tmp_path):
    endless = replace(evaluation.copy, threshold=float("inf"), highest_innocent=float("nan"))
    kept = ResultStore(tmp_path).add("a", endless)
    values = json.loads(kept_in(tmp_path).read_text())

    assert values["threshold"] is None
    assert values["highest_innocent"] is None
    assert ResultStore(tmp_path).trials["a"] == kept
    assert Trial.from_dict(values) == kept


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_line_that_was_cut_off_is_dropped_and_the_next_is_whole(evaluation, tmp_path, cut):
    ResultStore(tmp_path).add("first", evaluation.copy)
    ResultStore(tmp_path).add("second", evaluation.copy)
    file = kept_in(tmp_path)
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[:cut])

    store = ResultStore(tmp_path)
    assert list(store.trials) == ["first"]
    store.add("third", evaluation.copy)
    assert list(ResultStore(tmp_path).trials) == ["first", "third"]


@pytest.mark.parametrize("line", ["{}", '{"key": "a"}', "[1]", "null", "not JSON", '{"key": "a", "kind": "copy"}'])
def test_a_line_of_another_version_is_passed_over_and_left(evaluation, tmp_path, line):
    (tmp_path / PRIVATE).mkdir()
    kept_in(tmp_path).write_text(line + "\n")
    store = ResultStore(tmp_path)
    store.add("b", evaluation.copy)

    assert list(ResultStore(tmp_path).trials) == ["b"]
    assert kept_in(tmp_path).read_text().startswith(line + "\n")


def test_a_full_disk_is_said_to_be_full(evaluation, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ResultStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    assert f"The disk of {tmp_path / PRIVATE} is full" in refused(store.add, "a", evaluation.copy, error=StorageError)


def test_whatever_decides_a_figure_is_in_the_key():
    same = {"attack": "prune", "what": "MagnitudePruning(0.5)", "data": "00", "settings": {"alpha": 1e-6}}
    others = [{"attack": "int"}, {"what": "MagnitudePruning(0.6)"}, {"data": "01"}, {"settings": {"alpha": 1e-5}}]

    assert job_key(**same) == job_key(**dict(reversed(same.items())))
    assert len({job_key(**same | other) for other in [{}, *others]}) == 5


def test_a_folder_is_made_for_its_owner_alone(tmp_path):
    opens(tmp_path / "new" / "out")

    assert (tmp_path / "new" / "out").stat().st_mode & 0o777 == 0o700
    opens(tmp_path / "new" / "out")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    text = refused(opens, tmp_path)

    assert "thesis.tex" in text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_can_not_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("mine")

    assert "--out" in refused(opens, tmp_path / "file")


def test_two_can_not_work_in_one_folder(tmp_path):
    opens(tmp_path)
    with FileLock(tmp_path / ".lock"):
        assert "is running in" in refused(opens, tmp_path)


def test_the_evidence_left_is_the_surest_score(evaluation):
    (mixed,) = evaluation.of("collusion")

    assert mixed.score == max(mixed.scores)
    assert mixed.colluders == 2
    assert make_trial(mixed, 0.5, 3.0, accused=False).accused is False
    assert replace(mixed, shares=(0.97, 0.03)).main_contributors == (True, False)
    assert evaluation.unmarked.score == 0


def test_what_is_kept_to_go_on_from_is_for_the_owner_alone(evaluation, tmp_path):
    ResultStore(tmp_path).add("a", evaluation.copy)

    assert (tmp_path / PRIVATE).stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == [tmp_path / PRIVATE]


def test_results_that_earlier_versions_left_among_the_reports_are_moved(evaluation, tmp_path):
    ResultStore(tmp_path).add("a", evaluation.copy)
    kept_in(tmp_path).rename(tmp_path / RESULTS)
    opens(tmp_path)

    assert ResultStore(tmp_path).trials == {"a": evaluation.copy}
    assert not (tmp_path / RESULTS).exists()


def test_a_redacted_trial_has_figures_of_the_accused_only(evaluation):
    (mixed,) = evaluation.of("collusion")
    shown = replace(mixed, caught=(False, True)).redacted()

    assert shown.scores == (None, mixed.scores[1])
    assert shown.log10_bounds == (None, mixed.log10_bounds[1])
    assert (shown.highest_innocent, shown.histogram, shown.unaligned[1], shown.layers) == (None, (), None, ())
    assert (shown.score, shown.colluders, shown.accused) == (mixed.scores[1], 2, True)
    assert shown.redacted() == shown
    assert (shown.innocents, shown.innocents_accused, shown.unaligned[0]) == (mixed.innocents, 0, 0)
    assert replace(mixed, caught=(True, False)).redacted().layers == mixed.layers
    assert replace(mixed, caught=(False, False)).redacted().score is None
