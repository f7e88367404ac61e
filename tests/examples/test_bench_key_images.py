import re
import sys

import pytest

from examples.benchmarks import key_images as bench_key_images
from tests.helpers.trigger_models import base_with_triggers


pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def few_distortions(monkeypatch):
    """All distortions take long, and are tested elsewhere."""
    few = list(bench_key_images.DISTORTIONS.items())[:3]
    monkeypatch.setattr(bench_key_images, "DISTORTIONS", dict(few))


def run(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["bench_key_images.py", *map(str, arguments)])
    bench_key_images.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_key_images_of_a_base_are_read_back_and_its_copies_queried(tmp_path, monkeypatch, capsys):
    folder, vault, _ = base_with_triggers(tmp_path)
    few = ["--recipients", 2, "--innocents", 5]
    printed = run(monkeypatch, capsys, "--vault", vault.folder, "--base", folder, *few)

    assert len(bench_key_images.DISTORTIONS) == 3
    for name in bench_key_images.DISTORTIONS:
        assert re.search(rf"^\| {re.escape(name)} \| 100\.00% \(\d+\) \| 0 \|$", printed, re.M)
    assert "innocents matched, of 6 an image" in printed
    for name in ("with the mark removed", "with its mark", "with another's"):
        share, _, apart = re.search(rf"^\| {name} \| ([\d.]+)% of (\d+) \| (\d+) \|$", printed, re.M).groups()
        assert float(share) > 85 and int(apart) <= 1


def test_synthetic_images_are_used_without_a_vault(monkeypatch, capsys):
    printed = run(monkeypatch, capsys, "--recipients", 1, "--count", 5, "--innocents", 3, "--bits", 64)

    assert "| untouched | 100.00% (" in printed and "assigned triggers" not in printed
    assert float(re.search(r"Least PSNR ([\d.]+) dB", printed)[1]) >= 38
