import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from hf_fingerprint.vault import Vault
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import PASSPHRASE, new_vault, plain_arrays, save_plain, save_vit


TOKEN = "hf_inTheEnvironmentAlone"
HUB_OPTIONS = ("--revision", "--token-env", "--cache-dir", "--subfolder", "--variant")
COMMANDS = ("inspect", "trace", "verify", "issue", "vault add", "triggers", "evaluate", "hash")


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Iterator[SimpleNamespace]:
    """A private base in a folder of a repo, whose token is in the environment of the command alone."""
    monkeypatch.setattr("hf_fingerprint.checkpoints.ranged_files.FIRST_WAIT", 0)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    base, other = save_plain(tmp_path / "base"), save_plain(tmp_path / "other", plain_arrays(seed=1))
    weights = (base / "model.safetensors").read_bytes()
    with LoopbackHub() as hub:
        hub.point_client(monkeypatch, tmp_path / "cache")
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        hub.account("owner", orgs={"org"}, token=TOKEN)
        repo = hub.add("org/base", {"v/model.fp16.safetensors": weights, "v/config.json": b"{}"}, private=True)
        repo.tag("v1")
        repo.commit({"model.safetensors": (other / "model.safetensors").read_bytes()})
        new_vault(tmp_path / "vault")
        (tmp_path / "passphrase").write_text(PASSPHRASE)
        access = ["--token-env", "MY_TOKEN", "--cache-dir", tmp_path / "downloads"]
        yield SimpleNamespace(
            hub=hub,
            root=tmp_path,
            base=base,
            access=access,
            options=["--revision", "v1", "--subfolder", "v", "--variant", "fp16", *access],
            vault=["--vault", tmp_path / "vault"],
            unlocked=["--vault", tmp_path / "vault", "--passphrase-file", tmp_path / "passphrase"],
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_are_in_the_panel_hub_and_no_option_takes_a_token(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run(*command.split(), "--help")

    panel = out[out.index("─ Hub ─") :]
    assert code == 0
    assert all(re.search(rf"{name}\b", panel) for name in HUB_OPTIONS)
    assert not re.search(r"--token\s", out)
    assert ("--device" in panel) is (command != "hash")


def test_a_models_files_are_chosen_as_in_python(run, mine):
    code, out, _ = run("hash", "org/base", *mine.options)

    assert code == 0
    assert out == run("hash", mine.base)[1]
    assert not (mine.root / "cache/hub").exists()
    assert (mine.root / "downloads/models--org--base").is_dir()


def test_copies_are_issued_pushed_traced_and_found_with_the_token_of_the_environment(run, mine):
    marked = ["--amplitude", "0.003", "--coalition", "3", "--expected-recipients", "4"]
    to = ["--recipient", "alice", "--push-to", "org/alice"]
    said = [run("issue", "org/base", *to, *marked, *mine.options, *mine.vault, "--device", "cpu")]
    said.append(run("trace", "org/alice", *mine.access, "--device", "cpu", *mine.unlocked))
    said.append(run("watch", "org/alice", *mine.access, *mine.unlocked))
    said.append(run("trace", "org/alice", "--token-env", "NO_SUCH_VARIABLE", *mine.unlocked))

    assert [code for code, *_ in said] == [0, 0, 1, 2]  # expected: the variant of a recorded copy
    assert "accused: the copy made for alice" in " ".join(said[1][1].split())
    assert "give its name, not the token" in " ".join(said[3][2].split()) and "NO_SUCH_VARIABLE" not in said[3][2]
    (base,) = Vault(mine.root / "vault").bases()
    assert base.source == "org/base:v/./model.fp16.safetensors"
    assert not any(TOKEN in out + err for _, out, err in said)
    assert {call.token for call in mine.hub.calls if not call.path.startswith("/lfs-store/")} == {TOKEN}


def test_a_copy_is_pushed_with_the_token_of_the_environment(run, mine):
    marked = ["--amplitude", "0.003", "--coalition", "3", "--expected-recipients", "4"]
    run("issue", mine.base, "--recipient", "bob", "--out", mine.root / "copies", *marked, *mine.vault)

    assert run("push", mine.root / "copies/bob", "org/bob", *mine.vault)[0] == 2
    assert run("push", mine.root / "copies/bob", "org/bob", *mine.vault, "--token-env", "MY_TOKEN")[0] == 0


def test_what_can_not_be_used_is_named(run, mine):
    for option, value in (("--device", "teapot"), ("--subfolder", "../x"), ("--variant", "bf16")):
        code, _, err = run("inspect", save_vit(mine.root / "vit"), option, value)

        assert code == 2
        assert value in " ".join(err.split())
