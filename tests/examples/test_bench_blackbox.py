import pytest
import timm

from examples._common.results import Results
from examples.benchmarks import blackbox as bench_blackbox


pytestmark = pytest.mark.slow


def test_attacks_on_a_copy_are_measured_with_innocents_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_blackbox, "COVER_IMAGE_COUNT", 100)
    monkeypatch.setattr(bench_blackbox, "ACCURACY_IMAGES", 50)
    monkeypatch.setattr(bench_blackbox, "lite0", lambda: timm.create_model("test_resnet", num_classes=10))

    results = tmp_path / "blackbox.json"
    assert bench_blackbox.main(["--task", "digits", "--quick", "--out", str(tmp_path), "--results", str(results)]) == 0

    figures, suspects = Results.read(results).tables
    rows = {row[0]: row[1:] for row in suspects.rows}
    assert {"untouched", "int8", "average of 2", "layers of 5", "fine-tuned at 1e-04", "another model"} <= set(rows)
    assert rows["untouched"][0] == "3" and rows["the base"][1:4] == ("0%", "0%", "-")
    assert {row[-2] for row in rows.values()} == {"0"}
    assert float(figures.rows[1][1].split()[-1].rstrip("%")) > 90
    assert not (tmp_path / "vault.part").exists()
