"""Publishing by the command line, against a Hub on 127.0.0.1."""

import json
from types import SimpleNamespace

import pytest

from hf_fingerprint.cli.main import main
from hf_fingerprint.hub import api
from hf_fingerprint.vault import publications
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_hub_faults import Fault
from tests.helpers.small_models import new_vault, plain_arrays, save_plain


FEW = ["--coalition", "3", "--expected-recipients", "4", "--amplitude", "0.003"]
TOKEN = "hf_the-owner-of-org"


@pytest.fixture
def scene(tmp_path, monkeypatch, run):
    """A Hub, a model, a vault, and a way to run commands: `(exit code, stdout, stderr)`."""
    wait = api._delay
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        hub.account("owner", orgs={"org"}, token=TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(api, "_delay", lambda error, tried: None if wait(error, tried) is None else 0.0)
        model, vault = save_plain(tmp_path / "model"), new_vault(tmp_path / "vault")

        yield SimpleNamespace(
            hub=hub,
            model=model,
            vault=vault,
            run=lambda *arguments: run(*arguments, "--vault", vault.folder),
            root=tmp_path,
        )


def succeeded(outcome) -> str:
    code, out, err = outcome
    assert code == 0, err
    return out


def failed(outcome) -> str:
    code, _, err = outcome
    assert code == 2
    assert TOKEN not in err
    return err.splitlines()[-1]


def test_one_recipient_one_repo(scene):
    out = succeeded(scene.run("issue", scene.model, "--recipient", "alice", "--push-to", "org/alice", *FEW))

    revision = scene.hub.repos["org/alice"].refs["main"]
    assert f"alice: org/alice@{revision}" in out
    assert "1 published, 0 were published before" in out
    assert f"alice  org/alice@{revision}" in succeeded(scene.run("recipients"))
    (shown,) = json.loads(succeeded(scene.run("recipients", "--json")))
    assert (shown["repo"], shown["revision"], shown["published"]) == ("org/alice", revision, "confirmed")


def test_several_by_options_and_again_for_a_new_version(scene):
    pairs = ["--recipient", "alice", "--push-to", "org/a", "--recipient", "bob", "--push-to", "org/b"]
    succeeded(scene.run("issue", scene.model, *pairs, *FEW))
    newer = save_plain(scene.root / "newer", plain_arrays(seed=3))

    done = json.loads(succeeded(scene.run("issue", newer, "--reissue-from", scene.model, "--json", *FEW)))

    assert [(one["recipient"], one["repo"], one["new"]) for one in done] == [
        ("alice", "org/a", True), ("bob", "org/b", True)
    ]  # fmt: skip
    assert all(len(scene.hub.repos[repo].history()) == 3 for repo in ("org/a", "org/b"))
    again = succeeded(scene.run("issue", newer, "--reissue-from", scene.model, *FEW))
    assert "0 published, 2 were published before" in again


def test_a_table_of_recipients_with_accounts(scene):
    scene.hub.account("alice-hf", token="hf_a")
    table = scene.root / "recipients.csv"
    table.write_text("name,repo,account\nalice,org/a,alice-hf\nbob, org/b ,\n")

    succeeded(scene.run("issue", scene.model, "--recipients-file", table, "--gated", "manual", "--public", *FEW))

    assert {found.repo: found.account for found in publications(scene.vault)} == {"org/a": "alice-hf", "org/b": None}
    assert {repo.gated for repo in scene.hub.repos.values()} == {"manual"}


def test_a_table_of_recipients_names_folders_too(scene):
    table, out = scene.root / "recipients.csv", scene.root / "copies"
    table.write_text("name,repo,account\nalice,org/a,alice-hf\nbob,,\n")
    issuing = ["issue", scene.model, "--recipients-file", table, "--out", out, *FEW]

    first = succeeded(scene.run(*issuing))
    table.write_text("name\nalice\nbob\ncarol\n")
    again = succeeded(scene.run(*issuing))

    assert [f"{name}: {out / name}" in first for name in ("alice", "bob", "carol")] == [True, True, False]
    assert again.count("issued before") == 2 and f"carol: {out / 'carol'}\n" in again
    assert sorted(path.name for path in out.iterdir()) == ["alice", "bob", "carol"]
    assert scene.hub.repos.keys() == set() and publications(scene.vault) == []


def test_a_batch_that_breaks_off_says_how_far_it_came_and_goes_on(scene):
    table = scene.root / "recipients.csv"
    table.write_text("name,repo\n" + "".join(f"r{i},org/v{i}\n" for i in range(4)))
    scene.hub.faults.append(Fault(match=r"POST /api/models/org/v2/commit/", status=401, times=9))
    code, out, err = scene.run("issue", scene.model, "--recipients-file", table, *FEW)
    assert code == 2
    assert "org/v1@" in out
    assert "2 of 4 copies are published" in err
    assert "log in again" in err
    scene.hub.faults.clear()

    out = succeeded(scene.run("issue", scene.model, "--recipients-file", table, *FEW))

    assert "2 published, 2 were published before" in out
    assert len(scene.vault.copies()) == 4


def test_a_copy_in_a_folder_is_pushed_later(scene):
    succeeded(scene.run("issue", scene.model, "--recipient", "alice", "--out", scene.root / "copies", *FEW))

    out = succeeded(scene.run("push", scene.root / "copies" / "alice", "org/late", "--disclose"))

    assert out.startswith("alice: org/late@")
    assert "## Fingerprint" in scene.hub.repos["org/late"].history()[0].files["README.md"].decode()


def test_the_hash_in_the_card_is_what_the_recipient_computes(scene, capfd):
    succeeded(scene.run("issue", scene.model, "--recipient", "alice", "--push-to", "org/alice", *FEW))
    card = scene.hub.repos["org/alice"].history()[0].files["README.md"].decode()
    capfd.readouterr()

    assert main(["hash", "org/alice"]) == 0

    assert f"content hash `{capfd.readouterr().out.strip()}`" in card


BAD = {
    "nowhere": (["--recipient", "a"], "Give either --out"),
    "account of a folder": (["--recipient", "a", "--account", "a", "--out", "x"], "leave it out, or give --push-to"),
    "both places": (["--recipient", "a", "--out", "x", "--push-to", "org/a"], "Give either --out"),
    "nobody": (["--push-to", "org/a"], "give one for each"),
    "unequal": (["--recipient", "a", "--recipient", "b", "--push-to", "org/a"], "2 --recipient and 1 --push-to"),
    "accounts": (["--recipient", "a", "--push-to", "org/a", "--account", "x", "--account", "y"], "2 --account"),
    "gate": (
        ["--recipient", "a", "--push-to", "org/a", "--gated", "maybe"],
        "`--gated` must be one of auto, manual, got maybe",
    ),
    "again with names": (["--reissue-from", "x", "--recipient", "a"], "leave out --recipient"),
    "again of nothing": (["--reissue-from", "0123456789ab"], "0123456789ab"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_one_sentence(scene, case):
    arguments, sentence = BAD[case]

    assert sentence in failed(scene.run("issue", scene.model, *arguments, *FEW))
    assert not scene.vault.copies()
    assert not scene.hub.repos


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"recipient,repo\nalice,org/a\n", "lacks a column name or repo"),
        (b"name,repo\nalice,\n", "row 1 lacks a name or a repo"),
        (b"name,repo\nalice,org/a\nbob,org/a\n", "org/a is given to several recipients"),
        (b"name,repo\nalice,\xff\xfe\n", "can't be read as CSV"),
        (b"name,repo\n", "No recipient is given"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(scene, content, sentence):
    table = scene.root / "recipients.csv"
    table.write_bytes(content)

    assert sentence in failed(scene.run("issue", scene.model, "--recipients-file", table, *FEW))
    assert not scene.vault.copies()
