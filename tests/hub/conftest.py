"""A Hub on 127.0.0.1 and a registered base, for all tests of publishing."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from hf_fingerprint import Issuer, Vault
from hf_fingerprint.hub import api
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.small_models import PLAIN_SETTINGS, new_vault, save_plain


TOKEN = "hf_the-owner-of-org"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub, and this process logged in there as a member of `org`; it doesn't wait before it tries again."""
    wait = api._delay
    with LoopbackHub() as server:
        server.point_client(monkeypatch, tmp_path / "cache")
        server.account("owner", orgs={"org"}, token=TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(api, "_delay", lambda error, tried: None if wait(error, tried) is None else 0.0)
        yield server


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A registered base that no library builds."""
    folder = tmp_path_factory.mktemp("ready")
    model = save_plain(folder / "model", README_md="---\nlicense: mit\ntags:\n- plain\n---\n# Plain\n\nIt sees.\n")
    vault = new_vault(folder / "vault")
    Issuer(model, vault, PLAIN_SETTINGS).__exit__()
    return SimpleNamespace(model=model, vault=vault)


@pytest.fixture
def mine(ready, tmp_path):
    """The same base in a vault of this test's own, and a folder for copies on their way."""
    vault = tmp_path / "vault"
    vault.mkdir()
    with ready.vault.connect() as connection:
        connection.execute("VACUUM INTO ?", (str(vault / "vault.db"),))
    (vault / "identity.age").write_bytes((ready.vault.folder / "identity.age").read_bytes())
    return SimpleNamespace(model=ready.model, vault=Vault(vault), work=tmp_path / "work")
