import json

import pytest

from examples.benchmarks.shared_trials import check_results, run


def write(file, keys):
    file.write_text("".join(json.dumps({"key": key}) + "\n" for key in keys))
    return file


def test_results_are_counted_and_none_may_be_there_twice(tmp_path):
    assert check_results(write(tmp_path / "once", "abc")) == 3
    with pytest.raises(SystemExit, match="1 results were written twice"):
        check_results(write(tmp_path / "twice", "aba"))


def test_a_process_that_fails_ends_the_benchmark(tmp_path):
    with pytest.raises(SystemExit, match="trace-all ended with 2"):
        run(2, ["trace-all", tmp_path / "missing", "--vault", tmp_path / "none"])
