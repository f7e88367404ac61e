"""`triggers --cover-images`: the owner's photographs under the patterns."""

import json

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_fingerprint.blackbox.querying.query import find_base_with_triggers
from hf_fingerprint.cli.triggers_command import triggers
from tests.helpers.error_checks import refused
from tests.helpers.small_models import new_vault, save_vit


pytestmark = pytest.mark.integration


def test_trigger_images_are_made_from_photographs(tmp_path, capsys):
    china, flower = load_sample_images().images
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index, pixels in enumerate((china, flower, china[:, ::-1])):
        Image.fromarray(pixels).save(photographs / f"{index}.png")
    folder, vault = save_vit(tmp_path / "base"), new_vault(tmp_path / "vault")

    chosen = {"model": str(folder), "vault": vault.folder, "cover_images": photographs, "decoys": 1, "steps": 1}
    said = refused(lambda: triggers(count=3, **chosen))
    assert "holds 3 different photographs" in said
    capsys.readouterr()
    triggers(count=2, as_json=True, **chosen)

    printed = json.loads(capsys.readouterr().out)
    _, made = find_base_with_triggers(vault, None)
    assert (printed["triggers"], printed["decoys"]) == (2, 1) == (made.count, made.decoys)
    assert len(made.cover_images) == 3
