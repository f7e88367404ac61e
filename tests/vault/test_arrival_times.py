import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hf_fingerprint.keys import commitment
from hf_fingerprint.vault import (
    Base,
    Calibration,
    Carrier,
    CopyRecord,
    TensorRecord,
    Vault,
    arrivals,
    merge,
    open_pack,
    pack_vault,
    read_vault_folder,
    take_snapshot,
)
from hf_fingerprint.vault.schema import base_to_row
from hf_fingerprint.vault.sealing import AgeIdentity, new_identity
from hf_fingerprint.vault.snapshots import insert_rows


WHOLE = "f0" * 32
BASE = Base(
    base_id="53e1e7b2c8d4",
    source="org/tiny-vit",
    revision="9f" * 20,
    content_hash="53e1e7b2c8d4" + "a1" * 26,
    tensors={"head.weight": TensorRecord("F32", (2, 3), "0a" * 32)},
    carriers=(Carrier("head.weight", 0.004, np.array([0.5, 0.0], np.float32)),),
    family="tardos",
    length=4096,
    coalition=20,
    certified=12,
    certified_by="simulated: minority",
    alpha=0.05,
    expected_recipients=1000,
    calibration=Calibration("images", 256, 1e-3, 9.6e-05, 0.9985),
    secret=bytes(range(32)),
)


@pytest.fixture
def identity():
    secret, public_key = new_identity()
    return AgeIdentity(secret), public_key


@pytest.fixture
def pair(tmp_path, identity) -> list[Vault]:
    vaults = [Vault.create(tmp_path / name, public_key=identity[1]) for name in ("mine", "theirs")]
    for vault in vaults:
        with vault.connect() as connection:
            insert_rows(connection, "bases", [base_to_row(BASE)])
    return vaults


def written(vault: Vault, name: str, created: str | None = None) -> CopyRecord:
    record, key = vault.begin_copy(BASE, name, "/out")
    record = vault.mark_written(record, key, WHOLE)
    if created is not None:
        with vault.connect() as connection:
            connection.execute("UPDATE copies SET created = ? WHERE copy_id = ?", (created, record.copy_id))
    return record


def at(**ago: float) -> str:
    return (datetime.now(UTC) - timedelta(**ago)).isoformat(timespec="seconds")


def test_new_records_are_listed_with_their_own_date_and_the_time_of_the_merge(pair):
    mine, theirs = pair
    own, record = written(mine, "alice"), written(theirs, "bob", at(days=3))
    before = at()

    (arrival,) = merge(mine, take_snapshot(theirs)).arrived

    assert (arrival.copy_id, arrival.recipient, arrival.base_id) == (record.copy_id, "bob", BASE.base_id)
    assert arrival.created == theirs.copies()[0].created
    assert before <= arrival.arrived <= at()
    assert arrival.note is None
    assert arrivals(mine) == {record.copy_id: arrival.arrived}
    assert own.copy_id not in arrivals(mine)
    assert f"bob, copy {record.copy_id}, dated {arrival.created}, arrived {arrival.arrived}" == arrival.describe()
    assert merge(mine, take_snapshot(theirs)).arrived == ()
    assert arrivals(mine) == {record.copy_id: arrival.arrived}


@pytest.mark.parametrize(
    ("age", "said"),
    [
        ({"days": 3}, "before the last merge"),
        ({"hours": 20}, None),
        ({"hours": -1}, "after its arrival"),
        ({"minutes": -5}, None),
    ],
)
def test_a_date_before_the_last_merge_or_after_this_one_is_pointed_out(pair, age, said):
    mine, theirs = pair
    merge(mine, take_snapshot(theirs))
    written(theirs, "bob", at(**age))

    (arrival,) = merge(mine, take_snapshot(theirs)).arrived

    assert (said in arrival.note) if said else arrival.note is None
    assert arrival.to_dict()["note"] == arrival.note


def test_arrivals_stay_on_this_machine(pair, identity, tmp_path):
    mine, theirs = pair
    written(theirs, "bob")
    merge(mine, take_snapshot(theirs))

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(identity[0].decrypt(pack_vault(mine)))
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "arrivals" not in tables
        assert {key for (key,) in connection.execute("SELECT key FROM meta")} == {"format", "public_key"}
    assert open_pack(pack_vault(mine), identity[0], "x") == read_vault_folder(mine.folder) == take_snapshot(mine)
    assert arrivals(theirs) == {}


def test_a_vault_that_merged_nothing_has_no_such_table(pair):
    mine, theirs = pair
    merge(mine, take_snapshot(theirs))

    assert arrivals(mine) == {}
    with mine.connect() as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'arrivals'").fetchall()


def test_a_copy_begun_here_and_finished_elsewhere_does_not_arrive(pair):
    mine, theirs = pair
    record, key = mine.begin_copy(BASE, "bob", "/out")
    with theirs.connect() as connection:
        columns = (record.copy_id, BASE.base_id, "bob", "written", "/out", WHOLE, commitment(key, "bob", WHOLE))
        insert_rows(connection, "copies", [(*columns, record.created, record.sealed)])

    report = merge(mine, take_snapshot(theirs))

    assert (report.moved, report.arrived) == (1, ())
