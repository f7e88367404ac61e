import numpy as np
import pytest

from examples.benchmarks import readings


pytestmark = pytest.mark.integration


def test_innocents_reach_a_score_no_more_often_than_is_proven_under_each_reading(tmp_path):
    base, ancestor = readings.make_models(tmp_path, 3)
    rows = list(readings.measure("tardos", tmp_path, base, ancestor, 20_000, 3))

    assert {row[3] for row in rows} == {"plain", "whitened", "ancestor"}
    shares = np.array([[float(share) for share in row[4:]] for row in rows])
    assert shares[:, 0].min() > 0.01  # at 1e-2: they are drawn and scored
    assert shares[:, :2].max() < 1
    assert all(row[2].split(" of ")[0] == row[2].split(" of ")[1] for row in rows)
