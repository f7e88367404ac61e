import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from examples._common.real_inputs import FASHION_MNIST
from examples.reproduction import models as reproduction_models
from examples.reproduction import report as reproduction_report
from examples.reproduction import run as reproduction
from tests.helpers.processes import environment, module


def row(arm, seed=0, attack="none", level=0, accuracy=0.9, **others):
    found = {"caught": 1, "colluders": 1, "innocents": 0, "wrong": 0, "bits": 31, "score": 1.0}
    return (
        {"model": "cnn", "mode": "scratch", "arm": arm, "seed": seed, "attack": attack, "level": level}
        | {"accuracy": accuracy}
        | (found if arm != "unmarked" else {})
        | others
    )


def rows(unmarked, marked, **others):
    found = [row("unmarked", seed, accuracy=accuracy) for seed, accuracy in enumerate(unmarked)]
    for column in reproduction_report.COLUMNS:
        found += [row(column, seed, accuracy=accuracy, **others) for seed, accuracy in enumerate(marked)]
    return found


def printed_verdicts(table):
    return reproduction_report.verdicts({("cnn", "scratch"): table}, "fashion_mnist").markdown()


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_one_command_makes_the_table_and_its_plots_and_goes_on_where_it_stopped(tmp_path):
    command = module(
        "examples.reproduction.run", "--out", tmp_path / "out", "--models", "cnn", "--seeds", 1, "--quick", 0.01
    )
    command += ["--workers", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    for title in ("small CNN, from scratch", "small CNN, fine-tuned"):
        assert title in done.stdout
    for line in ("as trained", "average of 5 copies", "pruned to 80%", "AdamW 5e-03", "overwritten", "0 by spread"):
        assert line in done.stdout
    assert "not the paper's MNIST and CIFAR-10" in done.stdout
    with Image.open(tmp_path / "out" / "cnn-fine-tuned.png") as picture:
        assert min(picture.size) > 100
    assert not list((tmp_path / "out" / "work").iterdir())
    assert sorted(path.name for path in (tmp_path / "out" / "tasks").iterdir()) == [
        "cnn-fine-tuned-0.json",
        "cnn-scratch-0.json",
    ]

    again = subprocess.run(command, env=environment(), capture_output=True, text=True)

    assert again.stdout == done.stdout


def test_the_interval_is_students_over_seeds():
    unmarked, marked = [0.90, 0.91, 0.92, 0.90], [0.901, 0.908, 0.923, 0.9]
    found = 100 * (np.array(marked) - unmarked)

    mean, low, high = reproduction_report.difference(rows(unmarked, marked), "spread")

    expected = stats.t.interval(0.95, 3, loc=found.mean(), scale=stats.sem(found))
    assert (mean, low, high) == pytest.approx((found.mean(), *expected))


def test_one_seed_has_no_interval():
    assert reproduction_report.difference(rows([0.9], [0.9]), "spread") == (0.0, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("marked", "within"),
    [
        ([0.900, 0.901, 0.899], True),  # close to 0
        ([0.906, 0.898, 0.9], False),  # contains 0, and is wider than half a point
        ([0.896, 0.896, 0.8961], False),  # narrow, and away from 0
    ],
)
def test_the_report_says_whether_the_accuracy_holds(marked, within):
    table = rows([0.9] * 3, marked)

    printed = printed_verdicts(table)

    assert ("| accuracy, cnn, scratch, spread | within" in printed) is within


def test_the_report_names_the_rows_in_which_spread_is_worse_and_all_innocents():
    table = rows([0.9], [0.9])
    table += [row("spread", attack="pruned", level=0.8, caught=0, innocents=2)]
    table += [row("deepmarks, 0.85 and AND", attack="pruned", level=0.8, innocents=1)]

    printed = printed_verdicts(table)

    assert "fewer than `deepmarks` | cnn, scratch, pruned to 80%" in printed
    assert "1 by deepmarks, 0.85 and AND" in printed
    assert "2 by spread" in printed
    better = printed_verdicts(rows([0.9], [0.9]))
    assert "fewer than `deepmarks` | none |" in better


def test_the_report_names_wrong_bits_and_missed_colluders_of_the_papers_scheme():
    table = rows([0.9], [0.9], wrong=3)
    averaged = {"caught": 2, "colluders": 3}
    table += [row("deepmarks, 0.85 and AND", attack="averaged", level=3, **averaged), row("spread", attack="averaged")]

    printed = printed_verdicts(table)

    assert "as trained | cnn, scratch, seed 0: 3 |" in printed
    assert "misses a colluder | cnn, scratch, 3 copies |" in printed
    better = printed_verdicts(rows([0.9], [0.9]))
    assert "as trained | none |" in better
    assert "misses a colluder | none |" in better


def test_every_model_mode_and_seed_is_a_task():
    found = list(reproduction.tasks(["cnn", "wrn", "lite0"], None))

    assert len(found) == len(set(found)) == 2 * 6 + 2 * 6 + 5
    assert ("lite0", "scratch", 0) not in found
    assert list(reproduction.tasks(["cnn"], 1)) == [("cnn", "scratch", 0), ("cnn", "fine-tuned", 0)]


@pytest.mark.parametrize("make", [reproduction_models.small_cnn, reproduction_models.wide_resnet])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_models_take_both_kinds_of_images(make, channels):
    assert make(channels)(torch.zeros(2, channels, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "repo", "column"), [("mnist", "ylecun/mnist", "image"), ("cifar10", "uoft-cs/cifar10", "img")]
)
def test_the_papers_data_load_through_datasets(monkeypatch, name, repo, column):
    requested = []

    class Rows(list):
        def __getitem__(self, key):
            return [row["label"] for row in self] if key == "label" else super().__getitem__(key)

    def load_dataset(where, split):
        requested.append((where, split))
        gray = Image.fromarray(np.full((8, 8), 255, np.uint8))
        return Rows({column: gray, "label": label} for label in (3, 7))

    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)

    images = reproduction_models.load_images(name, 28, 1, 2, 2)

    assert requested == [(repo, "train[:2]"), (repo, "test[:2]")]
    assert images.train[0].shape == (2, 1, 28, 28)
    assert float(images.train[0].min()) == pytest.approx(1.0)
    assert images.test[1].tolist() == [3, 7]
