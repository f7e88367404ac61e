import re
import sys

import pytest

from examples.benchmarks import key_images as bench_key_images
from tests.helpers.trigger_models import base_with_triggers


pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def some_suffer(monkeypatch):
    """What all suffer takes a while, and is tested elsewhere."""
    few = list(bench_key_images.DISTORTIONS.items())[:3]
    monkeypatch.setattr(bench_key_images, "DISTORTIONS", dict(few))


def run(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["bench_key_images.py", *map(str, arguments)])
    bench_key_images.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_key_images_of_a_base_are_read_back_and_its_copies_asked(tmp_path, monkeypatch, capsys):
    folder, vault, _ = base_with_triggers(tmp_path)
    few = ["--recipients", 2, "--innocents", 5]
    told = run(monkeypatch, capsys, "--vault", vault.folder, "--base", folder, *few)

    assert len(bench_key_images.DISTORTIONS) == 3
    for name in bench_key_images.DISTORTIONS:
        assert re.search(rf"^\| {re.escape(name)} \| 100\.00% \(\d+\) \| 0 \|$", told, re.M)
    assert "innocents matched, of 6 an image" in told
    for name in ("with the mark removed", "with its mark", "with another's"):
        share, _, apart = re.search(rf"^\| {name} \| ([\d.]+)% of (\d+) \| (\d+) \|$", told, re.M).groups()
        assert float(share) > 85 and int(apart) <= 1


def test_clouds_stand_for_questions_without_a_vault(monkeypatch, capsys):
    told = run(monkeypatch, capsys, "--recipients", 1, "--count", 5, "--innocents", 3, "--bits", 64)

    assert "| untouched | 100.00% (" in told and "own questions" not in told
    assert float(re.search(r"least PSNR ([\d.]+) dB", told)[1]) >= 38
