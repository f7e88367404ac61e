import sys
from dataclasses import replace

import numpy as np
import pytest

from examples._common.results import Results
from examples.benchmarks import codes as bench_codes
from hf_fingerprint.codes import FAMILIES, FORGERIES, decoding, make_codebook


pytestmark = pytest.mark.integration


PLAN = replace(bench_codes.QUICK, length=1024, runs=((3, 1),), many=600, innocents=5_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_innocents_reach_a_score_no_more_often_than_is_proven(family):
    """40,000 innocents for each of some 30 score functions; if the bound were tight, 4 would reach 1e-4."""
    found = bench_codes.innocents_tail(family, 40_000, 512)
    assert found["1e-02"] < 1
    assert found["1e-03"] < 1
    assert found["1e-04"] * 4 <= 12
    assert found["1e-02"] > 0.01


def test_a_bound_of_the_wrong_size_would_show(monkeypatch):
    """Twice the logarithm too generous."""

    class Generous(bench_codes.ChernoffBound):
        def threshold(self, log_p):
            return super().threshold(log_p / 2)

    monkeypatch.setattr(bench_codes, "ChernoffBound", Generous)
    assert bench_codes.innocents_tail("tardos", 20_000, 512)["1e-03"] > 3


def test_provoked_functions_have_unit_variance_and_include_likelihood_ratios():
    codebook = make_codebook("tardos", 512, 5, bytes(32))
    functions = bench_codes.colluder_score_functions(codebook)
    np.testing.assert_allclose((functions**2 * codebook.variance).sum(axis=1), 1)
    assert len(functions) > 2 * 10 + 1


def test_a_run_writes_every_strategy_and_accuses_no_innocent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_codes, "QUICK", PLAN)
    monkeypatch.setattr(decoding, "CANDIDATES", 100)
    results = tmp_path / "codes.json"
    monkeypatch.setattr(sys, "argv", ["bench_codes.py", "--quick", "--results", str(results)])
    bench_codes.main()
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        for table in Results.read(results).tables
    }
    assert [row["code"] for row in tables["innocents"]] == list(FAMILIES)
    rows, many = tables["coalitions"], tables["many"]
    assert {row["strategy"] for row in rows} == set(FORGERIES)
    assert all(row["caught"] == "3 of 3" for row in rows if row["drift"] == "0")
    assert {row["recipients"] for row in many} == {"600"}
    average = next(row for row in many if row["strategy"] == "average" and row["drift"] == "0")
    assert average["caught"] == "3 of 3"
    assert all(row["innocents accused"] == "0" for row in rows + many)
    for row in rows:
        caught, large = map(int, row["main contributors caught"].split(" of "))
        assert 0 <= caught <= large <= int(row["caught"].split(" of ")[1])
    assert "| 3 | minority |" in capsys.readouterr().out
