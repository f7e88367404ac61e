"""No repr shows a secret: of any dataclass in the package, and of what a user holds in hand."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import hf_fingerprint
from hf_fingerprint import Fingerprint, Issuer, Vault, trace
from hf_fingerprint.blackbox import Labels, from_url
from hf_fingerprint.checkpoints.hub_options import HubOptions
from hf_fingerprint.errors import PassphraseError
from hf_fingerprint.vault.schema import FORMAT
from tests.helpers.secret_forms import find_secrets, secret_forms
from tests.helpers.small_models import PASSPHRASE, PLAIN_SETTINGS, new_vault, save_plain


MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(hf_fingerprint.__path__, "hf_fingerprint.")
    if not found.name.endswith("__main__")
]
SECRET_NAME = re.compile(r"secret|(^|_)keys?$|token|passphrase|codewords?$|sealed")
NO_SECRETS = {"Snapshot.public_key", "Fault.key", "_SnapshotUnion.refused_keys"}  # keys of rows, and a public one
NO_SECRETS |= {"_TraceOptions.passphrase_file", "ModelFiles.token_env"}  # where to find one
TOKEN = "hf_aVerySecretToken"


def test_no_dataclass_shows_bytes_or_a_field_that_is_named_as_a_secret():
    everything = {each for module in MODULES for each in vars(module).values() if isinstance(each, type)}
    kinds = set(filter(dataclasses.is_dataclass, everything))
    shown = [
        f"{kind.__name__}.{field.name}"
        for kind in kinds
        if kind.__module__.startswith("hf_fingerprint") and not has_own_repr(kind)
        for field in dataclasses.fields(kind)
        if field.repr and ("bytes" in str(field.type) or SECRET_NAME.search(field.name))
    ]

    assert len(kinds) > 80
    assert set(shown) == NO_SECRETS


def has_own_repr(kind: type) -> bool:
    """Whether a class's repr is written in the package, instead of made by `dataclass`."""
    return Path(kind.__repr__.__code__.co_filename).is_relative_to(Path(hf_fingerprint.__file__).parent)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A vault, unlocked, with a base and a copy; and the secrets of both."""
    root = tmp_path_factory.mktemp("reprs")
    vault, model = new_vault(root / "vault"), save_plain(root / "model")
    with Issuer(model, vault, PLAIN_SETTINGS) as issuer:
        copy = issuer.issue("alice", root / "alice")
        vault.unlock(PASSPHRASE)
        (record,) = vault.copies()
        secrets = secret_forms(issuer.base, vault.copy_key(record), "alice")
        del secrets["recipient"]
        identity = str(vault.age_identity()._identity)
        yield root, vault, issuer, copy, secrets | {"identity": identity.encode(), "passphrase": PASSPHRASE.encode()}


def test_what_a_user_holds_shows_no_secret(scene):
    root, vault, issuer, copy, secrets = scene
    (record,) = vault.copies()
    result = trace(copy.path, vault, all_scores=True)
    held = [vault, vault.age_identity(), issuer, issuer.base, issuer.base.codebook(), copy, record, result]
    held += [vault.rows(), *issuer.base.carriers, PLAIN_SETTINGS, HubOptions(token=TOKEN)]
    held += [from_url("https://models.example/classify", Labels(["cat", "dog"]), TOKEN)]
    for each in held:
        shown = repr(each) + str(each) + getattr(each, "_repr_html_", str)()
        assert not find_secrets(shown.encode(), secrets), type(each)
        assert TOKEN not in shown
    assert repr(vault) == f"Vault(folder={str(root / 'vault')!r}, format={FORMAT}, unlocked=True)"
    assert repr(issuer).startswith(f"Issuer(base={issuer.base.base_id!r}, source=")


def test_a_trainings_mark_shows_no_secret(scene):
    root, vault, _, _, secrets = scene
    fingerprint = Fingerprint(root / "model", "bob", vault, PLAIN_SETTINGS)

    assert repr(fingerprint).startswith("Fingerprint(")
    assert not find_secrets(repr(fingerprint).encode() + str(fingerprint).encode(), secrets)


def test_the_end_of_a_block_locks_the_vault_and_it_can_be_unlocked_again(scene):
    folder: Path = scene[1].folder
    with Vault(folder) as vault:
        assert not vault.unlocked and "unlocked=False" in repr(vault)
        vault.unlock(PASSPHRASE)
        assert vault.unlocked and "unlocked=True" in repr(vault)
        records = vault.copies()
        assert vault.copy_keys(records)
    assert not vault.unlocked
    with pytest.raises(PassphraseError, match="is locked"):
        vault.copy_keys(records)
    with pytest.raises(ZeroDivisionError), vault:
        vault.unlock(PASSPHRASE)
        raise ZeroDivisionError
    assert not vault.unlocked and vault.copies() == records
