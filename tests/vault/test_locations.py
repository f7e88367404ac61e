import json
import shutil
from functools import partial

import pytest

from hf_fingerprint import Issuer, Vault
from hf_fingerprint.blackbox.querying.proof import check_proof_path
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import VaultError
from hf_fingerprint.evaluation import evaluate
from hf_fingerprint.hub import Publisher
from hf_fingerprint.training import Fingerprint
from hf_fingerprint.vault.locations import find_enclosing_vault, find_vault_inside
from hf_fingerprint.vault.sealing import new_identity
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PLAIN_SETTINGS, names_in, new_vault, save_plain


refusal = partial(refused, error=VaultError)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    root = tmp_path_factory.mktemp("ready")
    save_plain(root / "model")
    with Issuer(root / "model", new_vault(root / "vault"), PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "copy")
    return root


@pytest.fixture
def scene(ready, tmp_path):
    for name in ("model", "vault", "copy"):
        shutil.copytree(ready / name, tmp_path / name)
    return tmp_path


def public_vault(folder) -> Vault:
    return Vault.create(folder, public_key=new_identity()[1])


class TestANewVault:
    @pytest.mark.parametrize("below", ["", "vault", "deep/er/vault"])
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", '{"model_type": "vit"}'),
            ("config.json", '{"architecture": "resnet18"}'),
            ("model.safetensors", ""),
            ("pytorch_model.bin.index.json", ""),
        ],
    )
    def test_in_a_models_folder_is_refused_and_nothing_is_made(self, tmp_path, below, name, content):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / name).write_text(content)

        said = refusal(lambda: public_vault(tmp_path / "model" / below))

        assert str(tmp_path / "model") in said
        assert "choose a place outside it" in said
        assert names_in(tmp_path / "model") == [name]

    def test_behind_a_link_into_a_models_folder_is_refused(self, scene):
        (scene / "model" / "sub").mkdir()
        (scene / "link").symlink_to(scene / "model" / "sub")

        refusal(lambda: public_vault(scene / "link" / "vault"))

    def test_next_to_a_model_or_another_programs_configuration_is_allowed(self, scene):
        (scene / "config.json").write_text(json.dumps({"editor": "vi"}))
        (scene / "loose.safetensors").write_bytes(b"")

        assert public_vault(scene / "another").folder == scene / "another"

    def test_by_the_command_line(self, scene, capsys):
        key = new_identity()[1]

        assert main(["vault", "init", str(scene / "model" / "vault"), "--public-key", key]) == 2
        assert "is inside the model folder" in capsys.readouterr().err


class TestAModelFolder:
    @pytest.mark.parametrize("place", ["", "sub/deep", "checkpoint-1", ".hidden"])
    def test_that_holds_any_vault_is_refused_by_its_name(self, scene, place, capsys):
        for folder in ("model", "copy"):
            (scene / folder / place).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scene / "vault" / "vault.db", scene / folder / place / "vault.db")
        vault = Vault(scene / "vault")

        said = [
            refusal(lambda: Issuer(scene / "model", vault)),
            refusal(lambda: Publisher(vault).push(scene / "copy", "org/x")),
        ]
        assert main(["vault", "add", str(scene / "model"), "--vault", str(vault.folder)]) == 2

        said.append(capsys.readouterr().err)
        assert all("vault.db" in each and "move the vault out of it" in each for each in said)

    def test_with_a_file_of_that_name_that_is_not_a_database_is_allowed(self, scene):
        (scene / "model" / "vault.db").write_text("a note")

        with Issuer(scene / "model", Vault(scene / "vault")) as issuer:
            copy = issuer.issue("bob", scene / "bobs")
        assert copy.left_out == (("vault.db", "a secret"),)

    def test_that_is_large_is_looked_at_for_a_while_only(self, scene, monkeypatch):
        monkeypatch.setattr("hf_fingerprint.vault.locations._MAX_ENTRIES", 30)
        for number in range(40):
            (scene / "model" / f"{number}").mkdir()
        (scene / "model" / "39" / "deep").mkdir()
        shutil.copyfile(scene / "vault" / "vault.db", scene / "model" / "39" / "deep" / "vault.db")

        assert find_vault_inside(scene / "model") is None


class TestOutputs:
    @pytest.mark.parametrize("place", ["out", "sub/out"])
    def test_is_not_written_into_any_vault(self, scene, place, monkeypatch, tmp_path):
        shutil.copytree(scene / "vault", scene / "another")
        vault, inside = Vault(scene / "vault"), scene / "another" / place
        with Issuer(scene / "model", vault) as issuer:
            said = [refusal(lambda: issuer.issue("bob", inside))]
        fingerprint = Fingerprint(scene / "model", "bob", vault)
        said.append(refusal(lambda: fingerprint.check_output_folder(inside)))
        said.append(refusal(lambda: check_proof_path(inside)))
        said.append(refusal(lambda: evaluate(scene / "model", scene, inside)))

        assert all(f"inside the vault {scene / 'another'}" in each for each in said)
        assert not inside.exists()
        assert vault.copies(recipient="bob") == []

    @pytest.mark.parametrize("name", ["identity.age", "sub/identity-old-12345678.age", "sub/vault.db"])
    def test_of_a_training_holds_no_vault_and_no_identity(self, scene, name):
        (scene / "out" / "sub").mkdir(parents=True)
        shutil.copyfile(scene / "vault" / "vault.db", scene / "out" / name)
        fingerprint = Fingerprint(scene / "model", "bob", Vault(scene / "vault"))

        assert name in refusal(lambda: fingerprint.check_output_folder(scene / "out"))


def test_a_vault_is_found_from_within_and_through_links(scene):
    (scene / "link").symlink_to(scene / "vault")

    assert find_enclosing_vault(scene / "vault") == find_enclosing_vault(scene / "link" / "a" / "b") == scene / "vault"
    assert find_enclosing_vault(scene / "model") is None
    assert find_enclosing_vault(scene) is None
    assert find_vault_inside(scene) == scene / "vault" / "vault.db"
    assert find_vault_inside(scene / "model", include_identities=True) is None
