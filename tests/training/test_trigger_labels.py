import json
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from timm.task import ClassificationTask
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_fingerprint import issue, trace
from hf_fingerprint.blackbox.querying.query import load_trigger_set, query
from hf_fingerprint.blackbox.trigger_set.build import build_trigger_set
from hf_fingerprint.registration import register
from hf_fingerprint.training import (
    DeepMarksLoss,
    Fingerprint,
    FingerprintCallback,
    FingerprintedModel,
    FingerprintTask,
)
from hf_fingerprint.training.trigger_labels import embed_trigger_labels
from hf_fingerprint.vault import Vault
from tests.helpers.small_models import PASSPHRASE, SETTINGS, new_vault, save_timm, save_vit, unlocked_vault
from tests.helpers.trigger_models import ModelSuspect, base_with_triggers, built, names_of


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A base with a trigger set, and copies issued to others."""
    root = tmp_path_factory.mktemp("template")
    folder, vault, _ = base_with_triggers(root)
    for name in ("bob", "carol"):
        issue(folder, name, vault, root / name)
    return root


@pytest.fixture
def marked_base(template, tmp_path):
    """The same, with a copy of the vault per test."""
    shutil.copytree(template / "vault", tmp_path / "vault")
    vault = unlocked_vault_at(tmp_path / "vault")
    (base,) = vault.bases()
    return template / "base", vault, base


def unlocked_vault_at(folder):
    vault = Vault(folder)
    vault.unlock(PASSPHRASE)
    return vault


def noise(seed, count=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def trained(start, fingerprint, out, steps=20):
    """A plain loop on labeled noise."""
    model = AutoModelForImageClassification.from_pretrained(start)
    deepmarks = DeepMarksLoss(model, fingerprint)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        images, labels = noise(step)
        loss = torch.nn.functional.cross_entropy(model(images).logits, labels) + deepmarks()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(out)
    return out


def test_a_model_trained_in_a_plain_loop_predicts_its_recipients_labels(marked_base, tmp_path):
    folder, vault, base = marked_base
    fingerprint = Fingerprint(folder, "alice", vault)

    recorded = fingerprint.record(trained(folder, fingerprint, tmp_path / "out"))

    assert recorded.has_trigger_labels
    assert recorded.copy_id in vault.answering_ids(base.base_id)
    assert [score.recipient for score in trace(tmp_path / "out", vault).accused] == ["alice"]
    assert [score.recipient for score in query(ModelSuspect(tmp_path / "out"), vault, alpha=1e-3).accused] == ["alice"]


@pytest.mark.slow
def test_training_moves_features_so_the_bases_own_head_update_would_miss(marked_base, tmp_path):
    folder, vault, base = marked_base
    fingerprint = Fingerprint(folder, "alice", vault)
    out = trained(folder, fingerprint, tmp_path / "out", steps=60)
    shutil.copytree(out, tmp_path / "by_the_base")
    fingerprint.record(out)
    (record,) = vault.copies(base.base_id, "alice")
    trigger_set, key = load_trigger_set(vault, base), vault.copy_key(record)
    (labels,), (assigned,) = trigger_set.assigned_labels([key])

    stale = built(tmp_path / "by_the_base").module
    with torch.no_grad():
        stale.get_parameter("classifier.weight").add_(torch.from_numpy(trigger_set.head_update(key)))
    stale.save_pretrained(tmp_path / "by_the_base")

    images = trigger_set.images(base.secret)[: trigger_set.count]
    kept = [
        (np.array([ModelSuspect(path)(image) for image in images]) == labels)[assigned].mean()
        for path in (out, tmp_path / "by_the_base")
    ]
    assert kept[0] >= 0.9
    assert kept[0] >= kept[1]


def test_a_trainers_model_predicts_them_too(marked_base, tmp_path):
    folder, vault, _ = marked_base
    fingerprint = Fingerprint(folder, "alice", vault)
    images, labels = noise(0, 32)
    trainer = Trainer(
        model=AutoModelForImageClassification.from_pretrained(folder),
        args=TrainingArguments(
            str(tmp_path / "checkpoints"), max_steps=3, report_to=[], disable_tqdm=True, use_cpu=True
        ),
        train_dataset=[{"pixel_values": i, "labels": t} for i, t in zip(images, labels, strict=True)],
        callbacks=[FingerprintCallback(fingerprint)],
    )
    trainer.train()
    trainer.save_model(tmp_path / "out")

    assert fingerprint.record(tmp_path / "out").has_trigger_labels
    assert [score.recipient for score in query(ModelSuspect(tmp_path / "out"), vault, alpha=1e-3).accused] == ["alice"]


def test_a_model_of_timms_loop_predicts_them_too(tmp_path):
    folder, vault = save_timm(tmp_path / "base", "test_resnet", num_classes=10), unlocked_vault(tmp_path / "vault")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 32, 32]
    (folder / "config.json").write_text(json.dumps(config))
    base, model = register(folder, vault, SETTINGS), built(folder)
    names = names_of(folder, model)
    vault.add_trigger_set(
        base, build_trigger_set(model, names, base.secret, base.base_id, count=12, decoys=2, steps=4).to_bytes()
    )
    fingerprint = Fingerprint(folder, "alice", vault)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).train()
    marked = FingerprintedModel(plain, fingerprint, 0.1)
    task = FingerprintTask(ClassificationTask(marked, torch.nn.CrossEntropyLoss(), verbose=False), marked.deepmarks)
    optimizer = torch.optim.AdamW(marked.parameters(), lr=1e-4)
    for step in range(3):
        task(*noise(step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    save_for_hf(marked.export(), tmp_path / "out", safe_serialization=True)

    recorded = fingerprint.record(tmp_path / "out")

    trigger_set, suspect = load_trigger_set(vault, base), ModelSuspect(tmp_path / "out")
    (labels,), (assigned,) = trigger_set.assigned_labels([vault.copy_key(vault.copies(base.base_id, "alice")[0])])
    predicted_labels = np.array([suspect(image) for image in trigger_set.images(base.secret)[:12]])
    assert recorded.has_trigger_labels
    assert (predicted_labels == labels)[assigned].mean() >= 0.8


def test_recording_again_changes_nothing(marked_base, tmp_path):
    folder, vault, _ = marked_base
    fingerprint = Fingerprint(folder, "alice", vault)
    first = fingerprint.record(trained(folder, fingerprint, tmp_path / "out"))
    content = (tmp_path / "out" / "model.safetensors").read_bytes()

    again = fingerprint.record(tmp_path / "out")

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert (again.content_hash, again.has_trigger_labels) == (first.content_hash, False)


def test_only_the_head_of_the_saved_model_is_changed(marked_base, tmp_path):
    folder, vault, _ = marked_base
    fingerprint = Fingerprint(folder, "alice", vault)
    before = load_file(trained(folder, fingerprint, tmp_path / "out") / "model.safetensors")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())

    fingerprint.record(tmp_path / "out")

    after = load_file(tmp_path / "out" / "model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["classifier.weight"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files


def test_a_base_without_triggers_leaves_the_model_unchanged(tmp_path):
    folder, vault = save_vit(tmp_path / "base"), new_vault(tmp_path / "vault")
    base = register(folder, vault, SETTINGS)

    assert not embed_trigger_labels(folder, base, vault, bytes(32))


def test_a_model_with_other_classes_gets_no_trigger_labels(marked_base, tmp_path):
    _, vault, base = marked_base
    other = save_vit(tmp_path / "other", hidden_size=128, num_labels=7)
    content = (other / "model.safetensors").read_bytes()

    with pytest.warns(UserWarning, match="The model has 7 classes and its base 10"):
        assert not embed_trigger_labels(other, base, vault, bytes(32))
    assert (other / "model.safetensors").read_bytes() == content


def test_a_pickled_model_gets_no_trigger_labels(marked_base, tmp_path):
    folder, vault, base = marked_base
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    torch.save(load_file(folder / "model.safetensors"), out / "pytorch_model.bin")

    with pytest.warns(UserWarning, match="save it as safetensors"):
        assert not embed_trigger_labels(out, base, vault, bytes(32))
