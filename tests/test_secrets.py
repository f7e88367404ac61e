"""Secrets never leave the vault: model secrets, copy keys, codewords, the passphrase, the identity."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hf_fingerprint import Issuer, Vault, trace
from hf_fingerprint.keys import derive
from tests.helpers.small_models import PLAIN_SETTINGS, names_in, new_vault, plain_arrays, save_plain


PASSPHRASE = "Tr0ub4dor & 3 very secret words"
RECIPIENTS = ("Ariadne-of-Naxos", "Bartholomew-Ltd", "Cassandra-GmbH")
# runs command lines one after another with everything logged, and prints what the process list shows
SCRIPT = """
import json, logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from hf_fingerprint.cli.main import main

for arguments, variables in [(sys.argv[1:], {})] if sys.argv[1:] else json.load(sys.stdin):
    os.environ.update(variables)
    try:
        code = main(arguments)
    except Exception:
        traceback.print_exc()
        code = "raised"
    for name in variables:
        del os.environ[name]
    print("EXIT", code, "CMDLINE", open("/proc/self/cmdline").read().replace(chr(0), " "), flush=True)
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder after a run of all commands, some of which failed, with their output and the secrets."""
    root = tmp_path_factory.mktemp("scene")
    vault, work = root / "vault", root / "work"
    new_vault(vault, PASSPHRASE)
    save_plain(work / "model", README_md="# A model\n")
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    for name in ("tmp", "home"):
        (work / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"TMPDIR": str(work / "tmp"), "HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    few = ["--coalition", "3", "--expected-recipients", "4", "--amplitude", "0.003"]
    kept = ["--vault", vault, "--passphrase-file", root / "passphrase"]
    everyone = [part for name in RECIPIENTS for part in ("--recipient", name)]
    damaged = plain_arrays()
    damaged["conv.weight"][0] = np.nan
    save_plain(work / "damaged", damaged)
    jobs = [  # what goes well,
        (["issue", "model", *everyone, "--vault", vault, "--out", work / "copies", *few, "--json"], {}),
        (["trace", work / "copies" / RECIPIENTS[0], *kept, "--json"], {}),
        (["trace", work / "copies" / RECIPIENTS[1], "--vault", vault], {"HF_FINGERPRINT_PASSPHRASE": PASSPHRASE}),
        (["recipients", "--vault", vault, "--json"], {}),
        (["vault", "add", "model", "--vault", vault, "--json"], {}),
        (["inspect", "model", *few], {}),
    ]
    wrong = [  # and what goes wrong, in a line and with the whole traceback
        ["issue", "damaged", "--recipient", "x", "--vault", vault, "--out", work / "nowhere", *few],
        ["issue", "model", "--recipient", "copies", "--vault", vault, "--out", work],
        ["issue", "model", "--recipient", "x", "--vault", vault, "--out", work / "nowhere", "--coalition", "7"],
        ["trace", "damaged", "--vault", vault, "--passphrase-file", vault / "identity.age"],
        ["trace", "nowhere", *kept],
        ["trace", "model", "--base", "damaged", *kept],
        ["vault", "init", vault, "--passphrase-file", root / "passphrase"],
    ]
    jobs += [(job, {}) for job in wrong] + [(job, {"HF_FINGERPRINT_TRACEBACK": "1"}) for job in wrong]
    said = []
    for arguments, command_lines in (([], jobs), (["trace", work / "copies" / RECIPIENTS[2], *kept], [])):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            input=json.dumps(command_lines, default=str).encode(),
            cwd=work,
            env=environment,
            capture_output=True,
        )
        assert done.returncode == 0
        said.append(done.stdout + done.stderr)
    codes = [line.split()[1] for line in said[0].decode().splitlines() if line.startswith("EXIT")]
    assert codes == ["0"] * 6 + ["2"] * 7 + ["raised"] * 7

    opened = Vault(vault)
    opened.unlock(PASSPHRASE)
    (base,) = opened.bases()
    keys = opened.copy_keys(opened.copies(base.base_id))
    assert len(keys) == 3
    secrets = {
        "the model secret": base.secret,
        "the passphrase": PASSPHRASE.encode(),
        "an identity": b"AGE-SECRET-KEY",
    }
    for label, context in (("signs", "conv.weight"), ("record", ""), ("offset", "conv.weight"), ("biases", "tardos")):
        secrets[f"the key for {label}"] = derive(base.secret, label, context)
    secrets |= {f"copy key {i}": key for i, key in enumerate(keys)}
    secrets |= {f"codeword key {i}": derive(key, "codeword", base.family) for i, key in enumerate(keys)}
    packed = base.codebook().packed(keys)
    secrets |= {f"codeword {i}": row.tobytes()[:24] for i, row in enumerate(packed)}
    secrets |= {f"codeword {i}, inverted": (~row).tobytes()[:24] for i, row in enumerate(packed)}
    secrets["the biases"] = base.codebook().thresholds[:12].tobytes()
    secrets |= {f"sealed {i}": copy.sealed for i, copy in enumerate(opened.copies(base.base_id))}
    return SimpleNamespace(work=work, vault=opened, base=base, keys=keys, secrets=secrets, said=said)


def spellings(secret: bytes) -> list[bytes]:
    """Returns a secret verbatim, and as it appears in a log or a JSON file."""
    coded = [base64.b64encode(secret), base64.urlsafe_b64encode(secret)]
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        *(text.rstrip(b"=")[:-1] for text in coded),
        repr(secret)[2:-1].encode(),
        str(list(secret)).strip("[]").encode(),
    ]


def find_secrets(content: bytes, scene: SimpleNamespace) -> list[str]:
    """The names of the secrets that some bytes hold."""
    return [name for name, secret in scene.secrets.items() if any(part in content for part in spellings(secret))]


def test_the_search_finds_what_it_looks_for(scene):
    for name, secret in scene.secrets.items():
        assert find_secrets(b"log: " + secret.hex().encode() + b" ...", scene) == [name]
        assert name in find_secrets(b"{'key': '" + base64.b64encode(secret) + b"'}", scene)
        assert name in find_secrets(secret, scene)
    database = b"".join(path.read_bytes() for path in scene.vault.folder.glob("vault.db*"))
    assert "the model secret" in find_secrets(database, scene)


def test_no_file_outside_the_vault_holds_a_secret(scene):
    files = [path for path in scene.work.rglob("*") if path.is_file()]

    assert len(files) >= 8
    for path in files:
        assert find_secrets(path.read_bytes(), scene) == [], path
        assert find_secrets(str(path.relative_to(scene.work)).encode(), scene) == []


def test_nothing_said_or_logged_holds_a_secret(scene):
    everything = b"\n".join(scene.said)

    assert b"DEBUG" in everything, "nothing was logged, so nothing was tested"
    assert everything.count(b"\nEXIT ") == 21
    assert everything.count(b"Traceback") >= 7
    for said in scene.said:
        assert find_secrets(said, scene) == [], said.decode(errors="replace")


def test_the_vault_does_not_hold_what_would_open_it(scene):
    for path in scene.vault.folder.rglob("*"):
        if path.is_file():
            found = find_secrets(path.read_bytes(), scene)
            assert not any(
                name.startswith(("copy key", "codeword", "the passphrase", "an identity")) for name in found
            )


def test_nothing_is_left_in_the_temporary_folder_or_the_home(scene):
    assert names_in(scene.work / "tmp") == []
    assert [path for path in (scene.work / "home").rglob("*") if path.is_file()] == []


def test_a_copy_does_not_say_whose_it_is_or_of_which_record(scene):
    for copy in scene.vault.copies():
        for path in Path(copy.out).rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            inside = str(path.relative_to(copy.out)).encode()
            for name in (*RECIPIENTS, copy.copy_id, copy.commitment, copy.base_id, "fingerprint", "vault"):
                assert name.lower().encode() not in (content + inside).lower(), f"{path} holds {name}"


def test_copies_differ_from_the_base_in_nothing_but_weights(scene):
    for copy in scene.vault.copies():
        assert names_in(Path(copy.out)) == ["README.md", "model.safetensors"]
        stat, base = Path(copy.out).stat(), (scene.work / "model").stat()
        assert stat.st_mode == base.st_mode


def test_no_representation_shows_a_secret(scene, tmp_path):
    with Issuer(scene.work / "model", scene.vault) as issuer:
        copy = issuer.issue("shown", tmp_path / "shown")
        shown = [copy, copy.to_dict(), issuer, issuer.base, issuer.base.carriers, issuer.base.codebook(), scene.vault]
    result = trace(copy.path, scene.vault)
    records = scene.vault.copies()
    shown += [result, result.to_dict(), *records, *(record.describe() for record in records)]
    shown += [scene.vault.bases(), scene.base.describe(), scene.vault._age_identity]

    for value in shown:
        assert find_secrets(repr(value).encode() + str(value).encode(), scene) == []


def test_errors_about_records_do_not_show_what_is_in_them(scene):
    from dataclasses import replace

    from hf_fingerprint.errors import VaultError

    one, two, _ = scene.vault.copies(scene.base.base_id)[:3]
    for broken in (replace(one, sealed=two.sealed), replace(one, commitment="0" * 64), replace(one, sealed=b"")):
        with pytest.raises(VaultError) as caught:
            scene.vault.copy_key(broken)
        error, texts = caught.value, []
        while error is not None:
            texts.append(f"{error} {error.args!r}")
            error = error.__cause__ or error.__context__
        assert find_secrets("\n".join(texts).encode(), scene) == []


def test_the_vault_is_for_its_owner_alone(tmp_path):
    vault = Vault.create(tmp_path / "vault", PASSPHRASE)

    Issuer(save_plain(tmp_path / "model"), vault, PLAIN_SETTINGS).__exit__()

    assert vault.folder.stat().st_mode & 0o077 == 0
    for path in vault.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent != vault.folder, path
