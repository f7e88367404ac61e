"""A small evaluation: a model of four classes, 40 images of noise, and few recipients."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.evaluation import Evaluation, Trial, evaluate
from tests.helpers.small_models import save_timm


SETTINGS = FingerprintConfig(coalition=2, expected_recipients=4)
CLASSES = ["ant", "bee", "cat", "dog"]
INNOCENTS = 300


def save_images(folder: Path, classes: list[str], each: int = 10, seed: int = 0) -> Path:
    """Images of noise, as many of each class."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def save_model_and_images(root: Path) -> Path:
    """The folder with both, `model` and `images`."""
    config = save_timm(root / "model", num_classes=4, img_size=32) / "config.json"
    config_values = json.loads(config.read_text())
    config_values["pretrained_cfg"]["input_size"] = [3, 32, 32]
    config.write_text(json.dumps(config_values))
    save_images(root / "images", CLASSES)
    return root


def run(
    place: Path, out: Path, attacks: tuple[str, ...] = ("half", "int", "average"), **changes: object
) -> Evaluation:
    """An evaluation of it."""
    given = {"coalitions": [2], "config": SETTINGS, "innocents": INNOCENTS} | changes
    return evaluate(place / "model", place / "images", out, attacks, **given)


def make_trial(trial: Trial, accuracy: float, score: float, accused: bool = True, **changes: object) -> Trial:
    """A point like another, with other figures."""
    return replace(trial, accuracy=accuracy, scores=(score,), caught=(accused,), **changes)
