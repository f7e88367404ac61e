import pytest

from examples.benchmarks import quick_evaluation
from examples.benchmarks.quick_evaluation import quick_rows


@pytest.mark.slow
def test_a_quick_evaluation_of_a_few_images_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(quick_evaluation, "ATTACKS", ("finetune", "half"))

    (row,) = quick_rows(tmp_path, images=10, size=32, fine_tuning_steps=1)

    assert row.what == "evaluate --quick, 2 attacks, 6 trials, Lite0 at 32 px, 10 images"
    assert "minutes" in row.measured
