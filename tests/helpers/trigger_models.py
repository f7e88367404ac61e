"""A small base with a trigger set, and a suspect that runs a model."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_fingerprint.blackbox.trigger_set.build import build_trigger_set
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import BuiltModel, map_parameter_names
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Base, Vault
from tests.helpers.small_models import SETTINGS, save_vit, unlocked_vault
from tests.helpers.small_models import build as built


COUNT, DECOYS, STEPS = 24, 4, 16
WIDTH = 128


def names_of(folder: Path, model: BuiltModel) -> dict[str, str]:
    with open_checkpoint(folder) as checkpoint:
        return map_parameter_names(model.module, checkpoint)


def base_with_triggers(root: Path, steps: int = STEPS) -> tuple[Path, Vault, Base]:
    """Returns a registered base with a trigger set, and its unlocked vault; one step is enough without queries."""
    folder, vault = save_vit(root / "base", hidden_size=WIDTH), unlocked_vault(root / "vault")
    base, model = register(folder, vault, SETTINGS), built(folder)
    made = build_trigger_set(
        model, names_of(folder, model), base.secret, base.base_id, count=COUNT, decoys=DECOYS, steps=steps
    )
    vault.add_trigger_set(base, made.to_bytes())
    return folder, vault, base


class ModelSuspect:
    """A suspect that runs the model in a folder and predicts labels only."""

    retries = 0

    def __init__(self, folder: Path):
        self.name, self._built, self.queried = "suspect", built(folder), 0

    def __call__(self, image: np.ndarray) -> int:
        self.queried += 1
        with torch.no_grad():
            return int(logits_of(self._built.module(self._built.preprocess(Image.fromarray(image))[None])).argmax())
