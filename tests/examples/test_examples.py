import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples._common.real_inputs import FASHION_MNIST, digits, fashion_mnist, lite0, save_timm
from examples._common.training import accuracy, fine_tune, predict
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction import Lineage
from hf_fingerprint.models.building import build_model
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing import RecipientScore, TraceResult
from tests.helpers.processes import ROOT, run_here


EXAMPLES = ROOT / "examples"


def is_a_picture(path: Path) -> bool:
    """Whether a file is an image with something on it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return image.format == "PNG" and min(pixels.shape[:2]) > 100 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.docs
def test_the_quickstart_accuses_bob_and_nobody_else(tmp_path, capsys):
    from examples import quickstart

    assert quickstart.main(tmp_path) == ["bob"]
    assert capsys.readouterr().out.startswith("bob: score 2")


@pytest.mark.slow
def test_the_demo_finds_every_leaker_and_nobody_else(tmp_path):
    out, err = run_here("demo", tmp_path, "--out", tmp_path / "demo", "--steps", 8)

    printed = " ".join(out.split())
    assert printed.count("ACCUSED") == 5
    assert re.search(r"accused: the copy made for alice \([^)]*\)\. 5 copies tested", printed)
    assert re.search(r"accused: the copy made for bob \([^)]*\)\. 5 copies tested", printed)
    assert all(name in printed.partition("the average of")[2] for name in ("carol", "dave", "erin"))
    assert printed.count("nobody is accused") == 1
    assert err.count("do not publish them") == 4
    assert "certified coalition: " in printed
    assert is_a_picture(tmp_path / "demo" / "scores.png")
    assert sorted(path.name for path in (tmp_path / "demo" / "copies").iterdir()) == [
        "alice",
        "bob",
        "carol",
        "dave",
        "erin",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "demo"]


def test_the_demo_does_not_delete_a_folder_that_is_not_its_own(tmp_path, monkeypatch):
    from examples import demo

    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path)])
    monkeypatch.setattr(demo, "lite0", lambda: sys.exit(3))

    with pytest.raises(SystemExit):
        demo.main()

    assert (tmp_path / "thesis.txt").exists()


def test_lite0_is_the_real_network_with_its_weights():
    model = lite0()

    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert model.pretrained_cfg["architecture"] == "tf_efficientnet_lite0"
    assert 0.01 < float(model.conv_head.weight.detach().std()) < 1
    assert float((model.bn2.running_var - 1).abs().max()) > 0.1  # trained, not as initialized
    with torch.no_grad():
        confident = model(torch.zeros(1, 3, 96, 96)).softmax(-1)
    assert confident.shape == (1, 1000)
    assert torch.isfinite(confident).all()


def test_a_model_saved_is_a_folder_that_the_package_builds(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()

    folder = save_timm(model, tmp_path / "model")

    with open_checkpoint(folder) as checkpoint:
        built = build_model(checkpoint)
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(built.module(images), model(images))


def test_digits_are_real_images_with_their_labels():
    images, labels = digits(20)

    assert images.shape == (1797, 3, 20, 20)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert -1.001 <= images.min() < -0.9
    assert 0.9 < images.max() <= 1.001
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_its_package():
    (images, labels), (tests, _) = fashion_mnist(True, 500, 28), fashion_mnist(False, 30, 40)

    assert images.shape == (500, 3, 28, 28)
    assert tests.shape == (30, 3, 40, 40)
    assert labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert -1 <= images.min() < images.max() <= 1
    assert images.is_contiguous()


def small() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )


def test_training_learns_and_is_the_same_every_time(capsys):
    images, labels = digits(8)
    before = accuracy(small(), images, labels)

    models = [fine_tune(small(), images, labels, lr=1e-2, steps=60) for _ in range(2)]

    assert accuracy(models[0], images, labels) > 0.8 > 0.3 > before
    assert not models[0].training
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    other = fine_tune(small(), images, labels, lr=1e-2, steps=60, seed=1)
    assert not torch.equal(other[1].weight, models[0][1].weight)


def test_no_steps_change_nothing():
    images, labels = digits(8)
    model = fine_tune(small(), images, labels, lr=1, steps=0)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small().parameters(), strict=True))


def test_predictions_are_the_classes_of_the_highest_logits_whatever_the_batch():
    images, _ = digits(8)
    model = small().eval()

    found = predict(model, images[:50])

    assert torch.equal(found, model(images[:50]).argmax(-1))
    assert torch.equal(found, predict(model, images[:50], batch=7))
    assert accuracy(model, images[:50], found) == 1
    assert accuracy(model, images[:50], (found + 1) % 10) == 0


def test_the_plot_shows_every_recipient(tmp_path):
    from examples._common.plots import plot_traces

    scores = tuple(RecipientScore(name, "0", score, 0.0, score > 10) for name, score in (("a", 60.0), ("b", -1.0)))
    figures = {"tensors_matched": 1, "tensors_marked": 1, "weights_read": 10, "weights_dropped": 0, "alpha": 1e-6}
    result = TraceResult(
        suspect="s",
        base="b",
        base_source="b",
        outcome=Outcome.ACCUSED,
        accused=scores[:1],
        scores=scores,
        recipients_tested=2,
        recipients_covered=2,
        **figures,
        lineage=Lineage(True, 1.0, 0.0),
        threshold=6.5,
        rounds=2,
    )
    nobody = replace(result, outcome=Outcome.NOBODY, accused=(), scores=scores[1:], threshold=float("inf"), rounds=0)

    path = plot_traces({"a very long title " * 5: result, "short": nobody}, tmp_path / "scores.png")

    assert path == tmp_path / "scores.png"
    assert is_a_picture(path)


def test_every_example_says_what_it_is_and_compiles():
    import ast

    scripts = list(EXAMPLES.rglob("*.py"))

    assert len(scripts) > 40
    assert not [script for script in scripts if not ast.get_docstring(ast.parse(script.read_text()))]


@pytest.mark.slow
def test_the_benchmark_of_attacks_trains_a_model_attacks_it_and_writes_its_page(tmp_path):
    chosen = ["resnet", "--scale", 0.01, "--coalitions", 3, "--attacks", "half", "average", "--out", tmp_path]
    run_here("benchmarks.attacks", tmp_path, *chosen)

    assert {"results.json", "private"} <= {path.name for path in (tmp_path / "resnet").iterdir()}
    assert "average" in (tmp_path / "resnet" / "report.html").read_text()

    shown = [tmp_path, "resnet", "--picture", tmp_path / "attacks.png"]
    table, _ = run_here("benchmarks.attacks_table", tmp_path, *shown)

    results = json.loads((tmp_path / "resnet" / "results.json").read_text())
    half, average = (next(p for p in results["trials"] if p["attack"] == name) for name in ("half", "average"))
    assert f"| half | {100 * half['accuracy']:.0f}, {half['scores'][0]:.0f} |" in table
    assert f"| nine even strategies | 1, 1 of 1; {sum(average['caught']) / 3:.0%} |" in table
    assert re.search(r"innocents accused, \d+ suspects \| 0 of 30,", table)
    assert "highest score of an innocent" not in table
    assert (tmp_path / "attacks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_benchmark_of_attacks_makes_an_ancestor_and_shows_its_attacks_next_to_their_controls(tmp_path):
    attacks = ["delta-int", "average-then-delta-scale-then-distill", "merge-stock"]
    chosen = ["resnet-tuned", "--scale", 0.01, "--coalitions", 3, "--attacks", *attacks, "--out", tmp_path]
    run_here("benchmarks.attacks", tmp_path, *chosen)
    table, _ = run_here("benchmarks.attacks_table", tmp_path, tmp_path, "resnet-tuned")

    rows = re.findall(r"^\| ([\w-]+) \| (\d) \| .+ \|$", table, re.MULTILINE)
    controls = [("ancestor-weights", "1"), ("ancestor-weights-then-distill", "1")]
    merged = [("average-then-delta-scale-then-distill", "3"), ("merge-stock", "3")]
    tables = [*controls, ("delta-int", "1"), *merged, *merged]
    assert rows == tables * 2  # with the ancestor registered, and without
    assert re.search(r"innocents accused, \d+ suspects \| 0 of \d", table)
