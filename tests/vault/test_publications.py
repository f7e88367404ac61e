import shutil
from functools import partial

import pytest

from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import (
    Vault,
    begin_publication,
    confirm_publication,
    find_publication,
    publications,
)
from tests.helpers.error_checks import refused
from tests.helpers.small_models import PLAIN_SETTINGS, new_vault, save_plain


refusal = partial(refused, error=VaultError)
FILES = {"model.safetensors": "0a" * 32, "README.md": "0b" * 32}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "vault")
    register(save_plain(root / "model"), vault, PLAIN_SETTINGS)
    return root / "vault"


@pytest.fixture
def vault(template, tmp_path):
    return Vault(shutil.copytree(template, tmp_path / "vault"))


def copy_for(vault: Vault, name: str):
    return vault.begin_copy(vault.bases()[0], name, "/out")[0]


def test_a_publication_is_on_record_before_the_push(vault):
    record = copy_for(vault, "alice")

    begun = begin_publication(vault, record.copy_id, "org/alice", FILES, "alice-hf")

    assert (begun.copy_id, begun.repo, begun.state) == (record.copy_id, "org/alice", "begun")
    assert (begun.base_id, begun.recipient) == (record.base_id, "alice")
    assert (begun.files, begun.revision, begun.account) == (FILES, None, "alice-hf")
    assert begun.created.endswith("+00:00")
    assert find_publication(Vault(vault.folder), record.copy_id) == begun


def test_and_confirmed_after_it(vault):
    record = copy_for(vault, "alice")
    begun = begin_publication(vault, record.copy_id, "org/alice", FILES)

    confirmed = confirm_publication(vault, record.copy_id, "ab" * 20)

    assert (confirmed.state, confirmed.revision) == ("confirmed", "ab" * 20)
    assert (confirmed.files, confirmed.created) == (begun.files, begun.created)
    assert publications(vault) == [confirmed]


def test_a_repeated_push_may_have_other_files_and_keeps_its_account(vault):
    record = copy_for(vault, "alice")
    begin_publication(vault, record.copy_id, "org/alice", FILES, "alice-hf")

    again = begin_publication(vault, record.copy_id, "org/alice", {"README.md": "0c" * 32})

    assert again.files == {"README.md": "0c" * 32}
    assert again.account == "alice-hf"
    assert publications(vault) == [again]


def test_a_confirmed_publication_is_not_begun_again(vault):
    record = copy_for(vault, "alice")
    begin_publication(vault, record.copy_id, "org/alice", FILES)
    confirmed = confirm_publication(vault, record.copy_id, "ab" * 20)

    assert begin_publication(vault, record.copy_id, "org/alice", {}) == confirmed


@pytest.mark.parametrize("confirmed", [False, True])
def test_a_copy_goes_to_one_repo_only(vault, confirmed):
    record = copy_for(vault, "alice")
    begin_publication(vault, record.copy_id, "org/alice", FILES)
    if confirmed:
        confirm_publication(vault, record.copy_id, "ab" * 20)
    before = publications(vault)

    text = refusal(begin_publication, vault, record.copy_id, "org/other", FILES)

    assert "org/alice" in text
    assert publications(vault) == before


def test_publications_are_listed_in_the_order_of_issue_by_repo_and_by_copy(vault):
    records = [copy_for(vault, name) for name in ("zoe", "alice", "bob")]
    for record in reversed(records):
        begin_publication(vault, record.copy_id, "org/one" if record.recipient == "bob" else "org/two", FILES)

    assert [found.copy_id for found in publications(vault)] == [record.copy_id for record in records]
    assert [found.copy_id for found in publications(vault, "org/two")] == [record.copy_id for record in records[:2]]
    assert [found.repo for found in publications(vault, copy_id=records[2].copy_id)] == ["org/one"]
    assert publications(vault, "ORG/ONE") == []
    assert find_publication(vault, "0" * 16) is None


def test_a_copy_that_is_not_on_record_is_not_published(vault):
    refusal(begin_publication, vault, "0" * 16, "org/alice", FILES)
    assert "0" * 16 in refusal(confirm_publication, vault, "0" * 16, "ab" * 20)
    assert publications(vault) == []
