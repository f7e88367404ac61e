import json
import shutil
from types import SimpleNamespace

import pytest

from hf_fingerprint import Issuer, Vault
from hf_fingerprint.vault.issuers import issuers
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, bytes_of, names_in, new_vault, save_plain


REPO = "org/keys"
FEW = ["--coalition", "3", "--expected-recipients", "4"]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "vault")
    with Issuer(save_plain(root / "model"), vault, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "copies" / "alice")
    (root / "passphrase").write_text(PASSPHRASE + "\n")
    (root / "new").write_text("a new passphrase\n")
    return root


@pytest.fixture
def mine(template, tmp_path):
    """A vault of this test's own, and the options that open it."""
    folder = shutil.copytree(template / "vault", tmp_path / "vault")
    return SimpleNamespace(
        folder=folder,
        kept=["--vault", folder, "--passphrase-file", template / "passphrase"],
        passphrase=["--passphrase-file", template / "passphrase"],
        new=["--new-passphrase-file", template / "new"],
        now=["--passphrase-file", template / "new"],
        model=template / "model",
        copy=template / "copies" / "alice",
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        server.account("owner", orgs={"org"}, token="hf_owner")
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        yield server


@pytest.fixture
def run(run, monkeypatch):
    """The same without an issuer's key, and with quick locks."""
    monkeypatch.delenv("HF_FINGERPRINT_ISSUER_KEY", raising=False)
    monkeypatch.setattr("hf_fingerprint.vault.rotation.encrypt_identity", lock_quickly)

    return run


def done(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert code == 0, err
    assert "SECRET-KEY" not in out + err
    return out


def failed(outcome: tuple[int, str, str]) -> str:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert "SECRET-KEY" not in err
    return err


def test_the_whole_way_of_two_roles_on_two_machines(hub, mine, run, tmp_path):
    key, runner = tmp_path / "ci.key", tmp_path / "runner"
    out = done(run("vault", "issuer", "new", key))
    public_key = out.splitlines()[-1].removeprefix("public key: ")
    done(run("vault", "issuer", "add", public_key, "--name", "ci", "--vault", mine.folder))
    out = done(run("vault", "push", REPO, *mine.kept))
    assert f"is now in {REPO} at " in out

    out = done(run("vault", "pull", REPO, runner, "--issuer-key", key))
    assert "1 new bases, 1 new records" in out
    assert f"new issuer ci ({public_key})" in out
    done(run("issue", mine.model, "--recipient", "bob", "--vault", runner, "--out", tmp_path))
    done(run("vault", "push", REPO, "--vault", runner, "--issuer-key", key))
    assert "identity" in failed(run("trace", tmp_path / "bob", "--vault", runner, *mine.passphrase))

    out = done(run("vault", "pull", REPO, mine.folder, *mine.passphrase))
    assert "1 new records" in out
    assert "accused: the copy made for bob (" in " ".join(done(run("trace", tmp_path / "bob", *mine.kept)).split())


def test_another_vault_in_the_repo_is_refused_by_its_identity(hub, mine, run, tmp_path):
    done(run("vault", "push", REPO, *mine.kept))
    identity = ["--identity", mine.folder / "identity.age", *mine.passphrase]
    expected = new_vault(tmp_path / "other").public_key

    assert expected in failed(run("vault", "pull", REPO, tmp_path / "new", *identity, "--public-key", expected))
    own = Vault(mine.folder).public_key
    done(run("vault", "pull", REPO, tmp_path / "new", *identity, "--public-key", own))


def test_pushing_twice_says_so(hub, mine, run):
    done(run("vault", "push", REPO, *mine.kept))

    assert f"was already in {REPO}" in done(run("vault", "push", REPO, *mine.kept))
    pushed = json.loads(done(run("vault", "push", REPO, *mine.kept, "--json")))
    assert (pushed["repo"], pushed["new"], pushed["merged"]["refused"]) == (REPO, False, [])


def test_the_issuers_key_may_come_from_the_environment(hub, mine, run, tmp_path, monkeypatch):
    public_key = done(run("vault", "issuer", "new", tmp_path / "ci.key")).splitlines()[-1].split()[-1]
    done(run("vault", "issuer", "add", public_key, "--name", "ci", "--vault", mine.folder))
    done(run("vault", "push", REPO, *mine.kept))
    monkeypatch.setenv("HF_FINGERPRINT_ISSUER_KEY", (tmp_path / "ci.key").read_text())

    done(run("vault", "pull", REPO, tmp_path / "runner"))
    done(run("vault", "push", REPO, "--vault", tmp_path / "runner"))


def test_without_a_key_it_says_what_is_missing(hub, mine, run, tmp_path):
    done(run("vault", "push", REPO, *mine.kept))

    assert "--issuer-key" in failed(run("vault", "pull", REPO, tmp_path / "new"))
    assert "passphrase" in failed(run("vault", "push", REPO, "--vault", mine.folder)).lower()
    assert "nothing" in failed(run("vault", "pull", REPO, tmp_path / "new", "--issuer-key", tmp_path / "nothing"))
    assert not (tmp_path / "new").exists()


def test_a_pulled_vault_without_any_key_can_still_begin_a_repo(hub, mine, run, tmp_path):
    (mine.folder / "identity.age").unlink()

    done(run("vault", "push", REPO, "--vault", mine.folder))
    assert "identity" in failed(run("vault", "push", REPO, "--vault", mine.folder))


def test_a_public_repo_is_refused(hub, mine, run):
    hub.add(REPO, {}, kind="dataset")

    assert "public" in failed(run("vault", "push", REPO, *mine.kept))


def test_issuers_are_listed_and_removed(mine, run, tmp_path):
    keys = {}
    for name in ("ci", "nightly"):
        out = done(run("vault", "issuer", "new", tmp_path / f"{name}.key"))
        keys[name] = out.splitlines()[-1].removeprefix("public key: ")
        done(run("vault", "issuer", "add", keys[name], "--name", name, "--vault", mine.folder))

    out = done(run("vault", "issuer", "list", "--vault", mine.folder))
    assert out == f"ci  {keys['ci']}\nnightly  {keys['nightly']}\n2 issuers\n"
    printed = json.loads(done(run("vault", "issuer", "list", "--vault", mine.folder, "--json")))
    assert printed == [{"name": name, "public_key": keys[name]} for name in keys]
    done(run("vault", "issuer", "remove", "ci", "--vault", mine.folder))
    assert issuers(Vault(mine.folder)) == {keys["nightly"]: "nightly"}
    assert "ci" in failed(run("vault", "issuer", "remove", "ci", "--vault", mine.folder))
    assert "ci.key" in failed(run("vault", "issuer", "new", tmp_path / "ci.key"))


def test_a_secret_key_is_not_taken_for_a_public_one(mine, run, tmp_path):
    done(run("vault", "issuer", "new", tmp_path / "ci.key"))
    secret = (tmp_path / "ci.key").read_text().splitlines()[1]

    text = failed(run("vault", "issuer", "add", secret, "--name", "ci", "--vault", mine.folder))
    assert secret[16:] not in text


def test_two_folders_are_merged(mine, run, tmp_path):
    other = shutil.copytree(mine.folder, tmp_path / "other")
    done(run("issue", mine.model, "--recipient", "bob", "--vault", other, "--out", tmp_path))

    assert "1 new records" in done(run("vault", "merge", other, "--vault", mine.folder))
    assert "0 new records" in done(run("vault", "merge", other, "--vault", mine.folder))
    assert [record.recipient for record in Vault(mine.folder).copies()] == ["alice", "bob"]


def test_a_record_that_contradicts_is_named_and_the_rest_is_merged(mine, run, tmp_path):
    other = Vault(shutil.copytree(mine.folder, tmp_path / "other"))
    done(run("issue", mine.model, "--recipient", "bob", "--vault", other.folder, "--out", tmp_path))
    with other.connect() as connection:
        connection.execute("UPDATE copies SET commitment = ? WHERE recipient = 'alice'", ("00" * 32,))
    before = bytes_of(other.folder)

    code, out, err = run("vault", "merge", other.folder, "--vault", mine.folder)

    assert code == 1
    assert "1 new records" in out
    assert "new: bob, copy " in out
    assert ", arrived 20" in out
    assert "refused: The record of copy " in err
    assert "(alice)" in err
    assert bytes_of(other.folder) == before
    code, out, _ = run("vault", "merge", other.folder, "--vault", mine.folder, "--json")
    printed = json.loads(out)
    assert (code, printed["copies"], printed["arrived"], printed["unusable"]) == (1, 0, [], [])
    assert [fault["table"] for fault in printed["refused"]] == ["copies"]
    listed = json.loads(done(run("recipients", "--vault", mine.folder, "--json")))
    assert [(each["recipient"], each["arrived"] is None) for each in listed] == [("alice", True), ("bob", False)]
    assert f"arrived {listed[1]['arrived']}" in done(run("recipients", "--vault", mine.folder))


def test_rotation_and_what_it_leaves(mine, run, tmp_path):
    before = shutil.copytree(mine.folder, tmp_path / "before")
    done(run("issue", mine.model, "--recipient", "bob", "--vault", before, "--out", tmp_path))

    code, out, err = run("vault", "rotate", *mine.kept, *mine.new)

    assert code == 0
    assert "1 records are sealed to the new identity" in out
    assert Vault(mine.folder).public_key in out
    assert "old copies" in err
    assert "does not open" in failed(run("trace", mine.copy, *mine.kept))
    assert "accused: the copy made for alice (" in " ".join(
        done(run("trace", mine.copy, "--vault", mine.folder, *mine.now)).split()
    )
    assert "rotate" in failed(run("vault", "merge", before, "--vault", mine.folder))
    (old,) = mine.folder.glob("identity-old-*.age")
    out = done(run("vault", "merge", before, "--vault", mine.folder, "--identity", old, *mine.passphrase))
    assert "1 new records" in out
    assert "accused: the copy made for bob (" in " ".join(
        done(run("trace", tmp_path / "bob", "--vault", mine.folder, *mine.now)).split()
    )


def test_rotation_to_an_identity_kept_elsewhere(mine, run, tmp_path):
    elsewhere = new_vault(tmp_path / "elsewhere")

    out = done(run("vault", "rotate", *mine.kept, "--public-key", elsewhere.public_key))

    assert elsewhere.public_key in out
    assert "identity.age" not in names_in(mine.folder)
    identity = ["--identity", tmp_path / "elsewhere" / "identity.age"]
    assert "accused: the copy made for alice (" in " ".join(
        done(run("trace", mine.copy, *mine.kept, *identity)).split()
    )


def test_the_old_passphrase_is_not_taken_for_the_new_one(mine, run, monkeypatch):
    monkeypatch.setenv("HF_FINGERPRINT_PASSPHRASE", PASSPHRASE)
    before = bytes_of(mine.folder)

    assert "--new-passphrase-file" in failed(run("vault", "rotate", "--vault", mine.folder))
    assert bytes_of(mine.folder) == before


def test_a_rotated_vault_is_pushed_with_the_old_identity(hub, mine, run, tmp_path):
    done(run("vault", "push", REPO, *mine.kept))
    run("vault", "rotate", *mine.kept, *mine.new)
    (old,) = mine.folder.glob("identity-old-*.age")

    assert REPO in failed(run("vault", "push", REPO, "--vault", mine.folder, *mine.now))
    done(run("vault", "push", REPO, "--vault", mine.folder, "--identity", old, *mine.passphrase))
    out = done(run("vault", "push", REPO, "--vault", mine.folder, *mine.now))
    assert "already" in out
    identity = ["--identity", mine.folder / "identity.age"]
    done(run("vault", "pull", REPO, tmp_path / "again", *identity, *mine.now))


def test_check_lists_what_is_wrong_and_a_trace_goes_on_without_it(mine, run, tmp_path):
    done(run("issue", mine.model, "--recipient", "bob", "--vault", mine.folder, "--out", tmp_path))
    assert "0 faults" in done(run("vault", "check", *mine.kept))
    with Vault(mine.folder).connect() as connection:
        connection.execute("UPDATE copies SET sealed = x'00' WHERE recipient = 'bob'")
        connection.execute("UPDATE copies SET out = ? WHERE recipient = 'bob'", ("\x1b[31mred",))

    code, out, _ = run("vault", "check", "--vault", mine.folder, "--locked")
    assert code == 1
    assert "not shared" in " ".join(out.split())
    assert "\x1b" not in out
    code, out, _ = run("vault", "check", *mine.kept)
    assert code == 1
    assert "(bob) was tampered with" in " ".join(out.split())
    code, out, _ = run("vault", "check", *mine.kept, "--json")
    assert [each["table"] for each in json.loads(out)] == ["copies"]
    assert "accused: the copy made for alice (" in " ".join(done(run("trace", mine.copy, *mine.kept)).split())
    code, out, _ = run("trace", tmp_path / "bob", *mine.kept)
    assert code == 3
    assert "nobody is cleared" in " ".join(out.split())
    assert "vault check" in " ".join(out.split())
