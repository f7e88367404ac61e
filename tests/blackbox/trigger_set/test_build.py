import numpy as np
import pytest
import torch

from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.blackbox.trigger_set import build
from hf_fingerprint.blackbox.trigger_set.build import adapt_trigger_set, build_trigger_set, make_trigger_set
from hf_fingerprint.blackbox.trigger_set.triggers import MIN_RECALL
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import Vault
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, SETTINGS, new_vault, save_plain, save_vit
from tests.helpers.tiny_built import tiny


pytestmark = pytest.mark.integration
NAMES = {"body.weight": "body.weight", "head.weight": "the.head"}
KEYS = [bytes([number]) * 32 for number in range(1, 13)]
FEW = {"count": 10, "decoys": 3, "steps": 2}


def made(**arguments):
    built = tiny(width=96)
    return built, build_trigger_set(built, NAMES, bytes(32), "0123456789ab", **{**FEW, **arguments})


def predicted_labels(built, trigger_set, change=0):
    shown = torch.stack([built.preprocess(picture) for picture in pictures(trigger_set)])
    with torch.no_grad():
        features = built.module.body(shown).relu().mean((2, 3))
        return (features @ (built.module.head.weight + change).T + built.module.head.bias).argmax(1).numpy()


def pictures(trigger_set):
    from PIL import Image

    return [Image.fromarray(image) for image in trigger_set.images(bytes(32))]


def test_a_model_with_its_head_changed_tells_its_own_labels():
    built, trigger_set = made()
    labels, assigned = trigger_set.assigned_labels(KEYS)

    copies_predict = np.stack(
        [predicted_labels(built, trigger_set, torch.from_numpy(trigger_set.head_update(key)))[:10] for key in KEYS]
    )

    assert (trigger_set.count, trigger_set.decoys, trigger_set.head, trigger_set.classes) == (10, 3, "the.head", 5)
    assert (copies_predict == labels)[assigned].mean() >= 0.85


def test_what_was_said_is_what_the_model_says():
    built, trigger_set = made()

    assert (trigger_set.logits[0].argmax(1) == predicted_labels(built, trigger_set)[:10]).mean() >= 0.9


def test_no_more_is_changed_than_it_takes(monkeypatch):
    _, least = made()
    monkeypatch.setattr(build, "MIN_RECALL", 2.0)  # never enough
    _, most = made()

    sizes = [np.mean([np.linalg.norm(trigger_set.head_update(key)) for key in KEYS]) for trigger_set in (least, most)]
    assert sizes[0] <= 0.9 * sizes[1]


def test_a_model_trained_further_is_measured_anew():
    built, trigger_set = made()
    with torch.no_grad():
        built.module.body.weight.add_(0.02 * torch.randn(built.module.body.weight.shape))
    labels, assigned = trigger_set.assigned_labels(KEYS)

    anew = adapt_trigger_set(built, NAMES, trigger_set, bytes(32))

    share = [
        (
            np.stack(
                [predicted_labels(built, trigger_set, torch.from_numpy(each.head_update(key)))[:10] for key in KEYS]
            )
            == labels
        )[assigned]
        for each in (anew, trigger_set)
    ]
    assert share[0].mean() >= 0.85
    assert share[0].mean() >= share[1].mean()
    assert np.array_equal(anew.patterns, trigger_set.patterns)


def test_a_head_that_the_files_don_t_have_is_refused():
    said = refused(lambda: build_trigger_set(tiny(), {}, bytes(32), "0123456789ab", **FEW), error=FingerprintError)

    assert "no tensor for its head head.weight" in said


def test_a_trigger_set_is_built_once_and_stored(tmp_path):
    folder, vault = save_vit(tmp_path / "base"), new_vault(tmp_path / "vault")
    base = register(folder, vault, SETTINGS)

    prepared = make_trigger_set(folder, vault.folder, count=4, decoys=2, steps=1)

    kept = load_trigger_set(Vault(vault.folder), base)
    assert kept.to_bytes() == prepared.to_bytes()
    assert 0 <= kept.recall == prepared.recall <= MIN_RECALL
    assert "already has a trigger set" in refused(make_trigger_set, base.base_id, vault, error=FingerprintError)


def test_a_base_that_can_t_be_run_is_refused(tmp_path):
    folder, vault = save_plain(tmp_path / "base"), new_vault(tmp_path / "vault", PASSPHRASE)
    register(folder, vault, PLAIN_SETTINGS)

    said = refused(make_trigger_set, folder, vault, error=FingerprintError)

    assert "has no config.json, so it can't be run: give the model's whole folder" in said
    with pytest.raises(FingerprintError):
        make_trigger_set(tmp_path / "nowhere", vault)
