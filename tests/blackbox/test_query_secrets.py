"""Secrets of a base with a trigger set never leave the vault, whatever is queried, made or refused."""

import logging
import shutil

import numpy as np
import pytest

from hf_fingerprint.blackbox.key_images.key_image import derive_fingerprint
from hf_fingerprint.blackbox.querying.query import load_trigger_set
from hf_fingerprint.blackbox.trigger_set.labels import assigned_triggers, keyed_labels
from hf_fingerprint.cli.main import main
from hf_fingerprint.keys import derive
from tests.helpers.loopback_suspect import Fault, LoopbackSuspect
from tests.helpers.secret_forms import find_secrets, secret_forms
from tests.helpers.small_models import PASSPHRASE
from tests.helpers.trigger_models import COUNT


pytestmark = pytest.mark.integration
QUERIED, OTHER, TOKEN = "recipient 0", "recipient 3", "hf_sesame_open"


@pytest.fixture(scope="module")
def secrets(issued):
    """Of a recipient whose copy is queried and of another; without the key that the proof opens."""
    _, vault, base, _ = issued
    found = {"the passphrase": PASSPHRASE.encode(), "an identity": b"AGE-SECRET-KEY", "the token": TOKEN.encode()}
    for label, context in (("questions", ""), ("key_images", ""), ("own_covers", "")):
        found[f"the key for {label}"] = derive(base.secret, label, context)
    pool = load_trigger_set(vault, base)
    for name in (QUERIED, OTHER):
        (record,) = vault.copies(base.base_id, name)
        key = vault.copy_key(record)
        found |= {f"{what}, {name}": secret for what, secret in secret_forms(base, key, name).items()}
        for label, context in (("fingerprint", ""), ("answers", str(pool.classes)), ("owned", "")):
            found[f"the key for {label}, {name}"] = derive(key, label, context)
        found[f"the fingerprint, {name}"] = derive_fingerprint(key, 304)
        labels, assigned = (
            keyed_labels([key], COUNT, pool.classes)[0],
            assigned_triggers([key], COUNT, pool.assigned_share)[0],
        )
        found[f"the labels, {name}"] = labels.astype(np.uint8).tobytes()
        found[f"the labels in a list, {name}"] = ", ".join(map(str, labels[assigned].tolist())).encode()
        found[f"what is owned, {name}"] = ", ".join(map(str, np.flatnonzero(assigned).tolist())).encode()
    return found


@pytest.fixture
def outcome(issued, tmp_path, monkeypatch, capfd, caplog):
    """Of command lines run with everything logged: exit codes or errors, files written, and all that was said."""
    folder, vault, _, copies = issued
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    work, suspect = tmp_path / "work", shutil.copytree(copies[QUERIED], tmp_path / "suspect")
    (work / "taken").mkdir(parents=True)
    (work / "labels").write_text("\n".join(f"class {index}" for index in range(10)))
    monkeypatch.setenv("TMPDIR", str(work))
    monkeypatch.setenv("THE_TOKEN", TOKEN)
    monkeypatch.setenv("HF_FINGERPRINT_TRACEBACK", "1")
    kept = ["--vault", vault.folder, "--passphrase-file", tmp_path / "passphrase"]
    with LoopbackSuspect() as server, caplog.at_level(logging.DEBUG):
        server.faults = [Fault(400, body=b"who are you?")]
        labels = ["--labels", work / "labels"]
        jobs = [
            ["query", f"pipeline:{suspect}", *labels, "--transcript", work / "log", "--alpha", "1e-3"],
            ["query", f"pipeline:{suspect}", *labels, "--transcript", work / "log", "--alpha", "1e-4"],
            ["query", f"pipeline:{folder}", *labels, "--json"],
            ["query", server.url, *labels, "--token-env", "THE_TOKEN"],
            ["query", "https://x.example", *labels, "--base", "nowhere"],
            ["key-images", "export", QUERIED, "--out", work / "set"],
            ["key-images", "export", QUERIED, "--out", work / "taken"],
            ["key-images", "export", "nobody", "--out", work / "none"],
            ["key-images", "read", work / "set" / "index.json"],
            ["query", f"pipeline:{suspect}", *labels, "--budget", "2"],
            ["query", f"pipeline:{suspect}", *labels, "--budget", "2", "--alpha", "0.99"],
        ]
        codes = []
        for job in jobs:
            try:
                codes.append(main([str(argument) for argument in [*job, *kept]]))
            except Exception as error:  # as `HF_FINGERPRINT_TRACEBACK` asks for
                codes.append(type(error).__name__)
                logging.getLogger("tests").exception("raised")
        assert any(TOKEN in value for seen in server.seen for value in seen.headers.values())
    predicted_labels = "".join(capfd.readouterr()) + caplog.text
    files = {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
    return codes, files, predicted_labels


def test_nothing_written_or_said_holds_a_secret(outcome, secrets):
    codes, files, predicted_labels = outcome

    assert codes[0] == 0 and codes[2] == 3 and codes[5] == 0 and codes[8] == 3 and codes[9] == 3
    assert all(isinstance(codes[i], str) for i in (1, 3, 4, 6, 7, 10)), codes
    assert "DEBUG" in predicted_labels and predicted_labels.count("Traceback") >= 6
    assert QUERIED in predicted_labels  # the owner of the open vault may see its recipients
    assert set(files) >= {"log", "set/index.json"} and len(files) > 5
    for name, content in files.items():
        assert find_secrets(name.encode() + b"\0" + content, secrets) == [], name
    unnamed = {name: secret for name, secret in secrets.items() if not name.startswith("recipient, ")}
    assert find_secrets(predicted_labels.encode(), unnamed) == []


def test_the_search_finds_what_it_looks_for(secrets):
    for name, secret in secrets.items():
        assert name in find_secrets(b"log: " + secret.hex().encode() + b" ...", secrets)
        assert name in find_secrets(b"picture" + secret, secrets)
