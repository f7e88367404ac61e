"""A vault of which one row was tampered with, or a part of whose file was lost: a part of the benchmark's damages."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from examples.benchmarks import tampered_rows as bench
from hf_fingerprint import Vault, trace
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import find_unusable_rows, open_copies, store
from hf_fingerprint.vault.check import check_vault
from hf_fingerprint.vault.sealing import open_identity


pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def usual_identity(monkeypatch):
    """The benchmark opens the identity once and keeps it: put it back afterwards."""
    monkeypatch.setattr(store, "open_identity", open_identity)


def test_one_changed_value_stops_no_other_trace_and_never_concludes_nobody(tmp_path):
    figure = bench.rows_figure(tmp_path, 20, every=13)

    assert figure.counts["wrong"] == []
    assert figure.counts["damages"] >= 20
    assert figure.counts["named"] >= figure.counts["damages"] // 2


def test_lost_bytes_stop_no_other_trace_and_never_conclude_nobody(tmp_path):
    figure = bench.pages_figure(tmp_path, 20, 10)

    assert figure.counts["wrong"] == []
    assert figure.counts["damages"] == 10


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    yield bench.make_testbed(tmp_path_factory.mktemp("scene"), 20)
    store.open_identity = open_identity  # a module's fixture is made before a test's, which then keeps the benchmark's


def opened(folder: Path) -> Vault:
    vault = Vault(folder)
    vault.unlock(bench.PASSPHRASE)
    return vault


def test_a_record_moved_to_another_base_is_reported_before_concluding_nobody(scene, tmp_path):
    """It is then no record of the base that the suspect is read against."""
    damage = bench.Damage("copies", "base_id", "second", "another base's")
    with closing(sqlite3.connect(scene.folder / "vault.db")) as connection:
        other = f"SELECT base_id FROM bases WHERE base_id != '{scene.base_id}'"
        damage = bench.Damage("copies", "base_id", connection.execute(other).fetchone()[0], "another base's")
    assert bench.tampered(scene, damage, tmp_path / "vault")

    result = trace(scene.victim, opened(tmp_path / "vault"))

    assert result.outcome is Outcome.NOT_READABLE
    assert [fault.key.split()[0] for fault in result.rows_not_used] == [scene.copy_id]
    assert scene.copy_id in result.reason


def test_rows_that_the_disk_lost_are_named_by_their_index(scene, tmp_path):
    """The leaf page of one record is overwritten: which records lay there, the index of the table still says."""
    bench.tampered(scene, bench.Damage("copies", "out", "/a place of its own", ""), tmp_path / "vault")
    database = tmp_path / "vault" / "vault.db"
    content = bytearray(database.read_bytes())
    page = content.index(b"/a place of its own") // 4096 * 4096
    content[page : page + 8] = b"\xff" * 8
    database.write_bytes(content)
    vault = opened(tmp_path / "vault")

    lost = {fault.key.split()[0] for fault in find_unusable_rows(vault) if fault.table == "copies"}
    left = {copy.copy_id for copy in vault.rows().copies}

    assert scene.copy_id in lost
    assert not lost & left
    assert len(lost | left) >= 21
    for base in vault.rows().bases:
        assert not open_copies(vault, vault.rows().copies_of(base.base_id)).faults
    assert any(fault.table == "database" for fault in check_vault(vault))


def test_an_intact_vault_has_no_faults(scene):
    assert check_vault(opened(scene.folder)) == []
