import json
import re

import pytest
import timm

from examples.benchmarks import blackbox as bench_blackbox


pytestmark = pytest.mark.slow


def test_attacks_on_a_copy_are_measured_with_innocents_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_blackbox, "COVER_IMAGE_COUNT", 100)
    monkeypatch.setattr(bench_blackbox, "ACCURACY_IMAGES", 50)
    monkeypatch.setattr(bench_blackbox, "lite0", lambda: timm.create_model("test_resnet", num_classes=10))

    assert bench_blackbox.main(["--task", "digits", "--quick", "--out", str(tmp_path)]) == 0

    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d.*) \|$", printed, re.M))
    assert {"untouched", "int8", "average of 2", "layers of 5", "fine-tuned at 1e-04", "another model"} <= set(rows)
    assert rows["untouched"].startswith("3 | ") and rows["the base"].split(" | ")[1:4] == ["0%", "0%", "-"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(row["innocents"] == 0 for row in found["rows"].values())
    assert min(after / before for before, after in found["weight_mark"]) > 0.9
    assert not (tmp_path / "vault.part").exists()
