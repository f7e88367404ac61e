import pytest
import timm

from examples._common.results import Results
from examples.benchmarks import suspects_in_memory as bench_suspects


pytestmark = pytest.mark.slow


def test_verdicts_in_memory_are_those_through_files(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_suspects, "lite0", lambda: timm.create_model("test_resnet", num_classes=10))
    results = tmp_path / "suspects.json"

    bench_suspects.main(["--out", str(tmp_path / "out"), "--pairs", "1", "--results", str(results)])

    (figures,) = Results.read(results).tables
    assert figures.rows[-1][1] == "5 of 5"
    assert not list((tmp_path / "out").glob("*.safetensors"))
