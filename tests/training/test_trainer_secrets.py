"""Nothing secret leaves by a training: not by its output folder, the Hub, TensorBoard, its log or a pickle; and what
was interrupted resumes with the same mark."""

import copy
import io
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.vault import begin_training
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.processes import ROOT
from tests.helpers.secret_forms import find_secrets, secret_forms
from tests.helpers.small_models import new_vault
from tests.helpers.training_runs import RECIPIENT, difference, register_base, save_cnn, train


pytestmark = pytest.mark.integration


# trains for a while with everything that Trainers write and push, all of it logged
SCRIPT = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from hf_fingerprint.vault import Vault
from tests.helpers.training_runs import StopAt, train

model, vault, out, job = sys.argv[1:]
result = train("callback", Path(model), Vault(vault), Path(out), **json.loads(job))
trainer = result.trainer
trainer._finish_current_push()
print([result.callback, result.fingerprint, result.callback.regularizer, result.callback._measured])
print(trainer.args, trainer.state, vars(result.callback), flush=True)
"""
USUAL = {"gradient_accumulation_steps": 3, "embed": True, "optim_args": "momentum=0.9"}


def records_of(base, vault):
    """What the vault says of the copy in training."""
    (record,) = vault.copies(base.base_id, RECIPIENT)
    return {"sealed key": record.sealed, "record": record.copy_id.encode()}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A training that pushes its checkpoints and is broken off, and its continuation by another process; the same
    without a break; the secrets of both."""
    root = tmp_path_factory.mktemp("secrets")
    model, vault = save_cnn(root / "model"), new_vault(root / "vault")
    register_base(model, vault)
    (base,) = vault.bases()
    _, key = begin_training(vault, base, RECIPIENT)
    bits = base.codebook().codeword(key)
    secrets = secret_forms(base, key, RECIPIENT) | records_of(base, vault)
    straight = train("callback", model, vault, root / "straight", **USUAL)

    said = []
    with LoopbackHub() as hub:
        hub.account("someone", token="hf_token")
        environment = hub.environment(root / "cache") | {"OMP_NUM_THREADS": "1", "HF_TOKEN": "hf_token"}
        environment["PYTHONPATH"] = str(ROOT)
        written = {"report_to": ["tensorboard"], "save_strategy": "steps", "save_steps": 3, "log_level": "debug"}
        pushed = {"push_to_hub": True, "hub_model_id": "someone/model", "hub_strategy": "checkpoint"}
        job = USUAL | written | pushed | {"hub_always_push": True}
        for more in ({"stop_at": 3}, {"resume": True}):
            command = [sys.executable, "-c", SCRIPT, model, vault.folder, root / "out", json.dumps(job | more)]
            done = subprocess.run(list(map(str, command)), env=environment, capture_output=True)
            assert done.returncode == 0, done.stderr[-3000:].decode()
            said.append(done.stdout + done.stderr)
        bodies = [path.encode() + repr(headers).encode() + body for _, path, headers, body in hub.received]
        commits = hub.repos["someone/model"].commits
    return SimpleNamespace(
        root=root, model=model, vault=vault, key=key, bits=bits, secrets=secrets, straight=straight, said=said,
        bodies=bodies, commits=commits,
    )  # fmt: skip


def test_the_search_finds_each_secret(scene):
    for name, secret in scene.secrets.items():
        assert name in find_secrets(b"..." + secret + b"...", scene.secrets)
        assert name in find_secrets(b"log: " + secret.hex().encode(), scene.secrets)
        assert name in find_secrets(pickle.dumps({"key": secret}), scene.secrets)
    database = b"".join(path.read_bytes() for path in scene.vault.folder.glob("vault.db*"))
    assert {"model secret", "copy key"} <= set(find_secrets(database, scene.secrets))


def test_no_file_that_the_trainer_writes_holds_a_secret(scene):
    files = [path for path in (scene.root / "out").rglob("*") if path.is_file()]
    names = {path.name for path in files}

    assert {"training_args.bin", "trainer_state.json", "optimizer.pt", "rng_state.pth", "model.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    for path in files:
        assert find_secrets(path.read_bytes(), scene.secrets) == [], path
        assert find_secrets(str(path.relative_to(scene.root)).encode(), scene.secrets) == []


def test_nothing_that_is_pushed_holds_a_secret(scene):
    pushed = {name: data for commit in scene.commits.values() for name, data in commit.files.items()}

    assert {"training_args.bin", "last-checkpoint/trainer_state.json", "last-checkpoint/optimizer.pt"} <= set(pushed)
    for name, data in pushed.items():
        assert find_secrets(data + name.encode(), scene.secrets) == [], name
    for body in scene.bodies:
        assert find_secrets(body, scene.secrets) == []


def test_nothing_logged_printed_or_in_the_state_holds_a_secret(scene):
    for said in scene.said:
        assert b"DEBUG" in said
        assert b"FingerprintCallback(strength=0.5, embed=True)" in said
        assert find_secrets(said, scene.secrets) == []
    state = json.loads((scene.root / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert not any("ingerprint" in name for name in state["stateful_callbacks"])


def test_another_process_resumes_with_the_same_mark_to_the_same_weights(scene):
    resumed = AutoModelForImageClassification.from_pretrained(scene.root / "out" / "checkpoint-6")
    weights = {name: p.detach() for name, p in resumed.named_parameters()}

    assert difference(weights, scene.straight.weights) <= 1e-6
    history = json.loads((scene.root / "out" / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    straight = [log for log in scene.straight.trainer.state.log_history if "loss" in log]
    assert [log["fingerprint_agreement"] for log in history] == [1.0] * 6
    assert [log["fingerprint_loss"] for log in history] == pytest.approx(
        [log["fingerprint_loss"] for log in straight], rel=1e-3
    )
    assert begin_training(scene.vault, *scene.vault.bases(), RECIPIENT)[1] == scene.key


def test_objects_with_secrets_are_never_pickled_nor_copied(scene):
    callback = scene.straight.callback
    direct = [callback.fingerprint, callback.regularizer]

    for held in [*direct, callback, {"callback": callback}]:
        for save in (pickle.dumps, lambda value: torch.save(value, io.BytesIO())):
            with pytest.raises(FingerprintError, match=r"^A fingerprint holds secrets and can't be pickled: .*\.$"):
                save(held)
    for held in direct:
        assert copy.deepcopy(held) is held


def test_representations_hold_no_secret(scene):
    callback = scene.straight.callback
    shown = [callback, callback.fingerprint, callback.regularizer, callback._measured, callback._injection]

    for value in shown:
        assert find_secrets(f"{value!r} {value}".encode(), scene.secrets) == []
    for part in callback.regularizer._maps.values():
        assert find_secrets(f"{part!r} {part}".encode(), scene.secrets) == []
