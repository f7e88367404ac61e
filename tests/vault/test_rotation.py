import os
import shutil
import signal
import sqlite3
import stat
from functools import partial
from pathlib import Path

import pytest

from hf_fingerprint import Issuer, Vault, trace
from hf_fingerprint.errors import PassphraseError, VaultError
from hf_fingerprint.vault import begin_training, copies_in_training, open_copies
from hf_fingerprint.vault import rotation as module
from hf_fingerprint.vault.merging import MergeReport, merge
from hf_fingerprint.vault.packing import open_pack, pack_vault, take_snapshot
from hf_fingerprint.vault.rotation import rotate
from hf_fingerprint.vault.sealing import AgeIdentity, new_identity, open_identity
from tests.helpers.error_checks import refused
from tests.helpers.quick_age import lock_quickly
from tests.helpers.small_models import (
    PASSPHRASE,
    PLAIN_SETTINGS,
    bytes_of,
    names_in,
    new_vault,
    save_plain,
    vault_bytes,
)


pytestmark = pytest.mark.integration


NEW = "a new passphrase"
WHOLE = "f0" * 32
refusal = partial(refused, error=VaultError)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "encrypt_identity", lock_quickly)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    vault = new_vault(root / "vault")
    with Issuer(save_plain(root / "model"), vault, PLAIN_SETTINGS) as issuer:
        list(issuer.issue_all(["alice", "bob"], root / "copies"))
    vault.begin_copy(vault.bases()[0], "carol", root / "nowhere")
    shutil.rmtree(vault.folder / "locks", ignore_errors=True)
    return root


@pytest.fixture
def vault(template, tmp_path):
    vault = Vault(shutil.copytree(template / "vault", tmp_path / "vault"))
    vault.unlock(PASSPHRASE)
    return vault


def keys_of(folder: Path, passphrase: str = NEW) -> list[bytes]:
    vault = Vault(folder)
    vault.unlock(passphrase)
    return vault.copy_keys(vault.copies())


def digits(public_key: str) -> str:
    return public_key[4:12]


def test_every_record_opens_with_the_new_identity_and_none_with_the_old(vault, template):
    keys, before, old = vault.copy_keys(vault.copies()), vault.copies(), vault.age_identity()

    done = rotate(vault, NEW)

    assert done.vault.public_key != vault.public_key
    assert keys_of(vault.folder) == keys
    after = done.vault.copies()
    assert [(r.copy_id, r.recipient, r.state, r.commitment, r.out) for r in after] == [
        (r.copy_id, r.recipient, r.state, r.commitment, r.out) for r in before
    ]
    assert done.records == 3
    for record in after:
        assert record.copy_id in refusal(old.unseal, record.sealed, record.copy_id, record.base_id, record.recipient)
    done.vault.unlock(NEW)
    (accused,) = trace(template / "copies" / "bob", done.vault).accused
    assert accused.recipient == "bob"


def test_the_old_passphrase_and_the_old_identity_are_refused(vault):
    done = rotate(vault, NEW)

    refusal(done.vault.unlock, PASSPHRASE, error=PassphraseError)
    refusal(done.vault.unlock, PASSPHRASE, done.old_identity_file, error=PassphraseError)
    assert not done.vault.unlocked


def test_the_identities_files_say_which_is_which(vault):
    old = vault.public_key

    done = rotate(vault, NEW)

    assert set(names_in(vault.folder)) == {"identity.age", f"identity-old-{digits(old)}.age", "vault.db"}
    assert done.identity == vault.folder / "identity.age"
    assert done.old_identity_file == vault.folder / f"identity-old-{digits(old)}.age"
    assert open_identity(done.old_identity_file, PASSPHRASE).public_key == old
    assert open_identity(done.identity, NEW).public_key == done.vault.public_key
    assert {stat.S_IMODE(path.stat().st_mode) for path in vault.folder.iterdir()} == {0o600}


def test_the_new_identity_may_be_kept_elsewhere(vault, tmp_path):
    keys, (identity, public_key) = vault.copy_keys(vault.copies()), new_identity()
    (tmp_path / "elsewhere.age").write_bytes(lock_quickly(identity, NEW))

    done = rotate(vault, public_key=public_key)

    assert done.identity is None
    assert done.vault.public_key == public_key
    assert not (vault.folder / "identity.age").exists()
    assert done.old_identity_file is not None
    assert identity.encode() not in vault_bytes(vault)
    done.vault.unlock(NEW, tmp_path / "elsewhere.age")
    assert done.vault.copy_keys(done.vault.copies()) == keys


def test_no_identity_but_a_public_key_is_taken(vault):
    before = bytes_of(vault.folder)
    for wrong in ("age1nonsense", new_identity()[0], vault.public_key):
        text = refusal(lambda wrong=wrong: rotate(vault, public_key=wrong))
        assert "SECRET" not in text
    refusal(rotate, Vault(vault.folder), NEW, error=PassphraseError)

    assert bytes_of(vault.folder) == before


def test_an_empty_passphrase_changes_nothing(vault, monkeypatch):
    monkeypatch.undo()
    before = bytes_of(vault.folder)

    refusal(rotate, vault, "", error=PassphraseError)
    assert bytes_of(vault.folder) == before


@pytest.mark.parametrize("column", ["sealed", "commitment", "recipient"])
def test_a_tampered_record_is_reported_and_unchanged(vault, column):
    record = vault.copies()[1]
    value = b"junk" if column == "sealed" else "00" * 32
    with vault.connect() as connection:
        connection.execute(f"UPDATE copies SET {column} = ? WHERE copy_id = ?", (value, record.copy_id))
    before = [copy for copy in vault.copies() if copy.copy_id == record.copy_id]
    count = len(vault.copies())

    done = rotate(vault, NEW)

    assert [fault.key.split()[0] for fault in done.faults] == [record.copy_id]
    assert done.records == count - 1
    done.vault.unlock(NEW)
    after = done.vault.copies()
    assert [copy for copy in after if copy.copy_id == record.copy_id] == before
    opened = open_copies(done.vault, after)
    assert len(opened.keys) == count - 1
    assert [fault.key for fault in opened.faults] == [fault.key for fault in done.faults]


def test_old_seals_and_key_caches_are_erased_from_the_files(vault, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 2)
    base = vault.bases()[0]
    seals = [record.sealed for record in vault.copies()]
    for _ in range(3):  # seals that were replaced before, and key caches
        vault.begin_copy(base, "carol", "/out", resumed_record=vault.copies()[2])
        seals += [record.sealed for record in vault.copies()]
        vault.copy_keys(vault.copies())
        vault.begin_copy(base, "dora", "/out")
        with vault.connect() as connection:
            seals += [sealed for (sealed,) in connection.execute("SELECT sealed FROM bundles")]
    vault.copy_keys(vault.copies())
    assert any(seal[-64:] in vault_bytes(vault) for seal in seals)

    done = rotate(vault, NEW)

    content = vault_bytes(vault)
    assert done.old_seals_erased
    assert done.vault.copies()[0].sealed[-64:] in content
    for seal in seals:
        assert not any(seal[i : i + 24] in content for i in range(100, len(seal) - 24, 24))
    with vault.connect() as connection:
        assert connection.execute("SELECT count(*) FROM bundles").fetchone() == (0,)


def test_while_another_process_reads_it_says_that_old_seals_are_left(vault, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.database.WAIT_SECONDS", 0.1)
    reader = sqlite3.connect(vault.folder / "vault.db")
    reader.execute("BEGIN").execute("SELECT * FROM meta").fetchall()

    done = rotate(vault, NEW)

    reader.close()
    assert not done.old_seals_erased
    assert keys_of(vault.folder)


def test_the_order_of_records_and_their_bases_stays(vault):
    for name in "zyx":
        vault.begin_copy(vault.bases()[0], name, "/out")
    before = [record.copy_id for record in vault.copies()]

    done = rotate(vault, NEW)

    assert [record.copy_id for record in done.vault.copies()] == before
    assert done.vault.bases() == vault.bases()


def test_a_training_continues(vault):
    base = vault.bases()[0]
    record, key = begin_training(vault, base, "emil")

    done = rotate(vault, NEW)

    resumed_record, same = begin_training(done.vault, base, "emil")
    assert (resumed_record.copy_id, same) == (record.copy_id, key)
    written = done.vault.mark_written(resumed_record, key, WHOLE)
    assert copies_in_training(done.vault) == set()
    done.vault.unlock(NEW)
    assert done.vault.copy_key(written) == key


def test_a_process_that_opened_the_vault_before_seals_nothing_more_to_the_old_identity(vault, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.unsealing.KEY_CACHE_MIN", 1)
    before, records = Vault(vault.folder), vault.copies()
    base, begun = before.bases()[0], before.copies()[2]
    done = rotate(vault, NEW)
    rows = done.vault.copies()

    assert str(vault.folder) in refusal(before.begin_copy, base, "emil", "/out")
    assert begun.copy_id in refusal(lambda: before.begin_copy(base, "carol", "/out", resumed_record=begun))
    vault.copy_keys(records)
    with vault.connect() as connection:
        assert connection.execute("SELECT count(*) FROM bundles").fetchone() == (0,)
    assert done.vault.copies() == rows
    refusal(rotate, vault, NEW)
    assert sorted(names_in(vault.folder))[0].startswith("identity-old-")
    assert len(names_in(vault.folder)) == 3


def test_rotated_twice_it_opens_with_the_last_identity_and_keeps_all(vault):
    keys, publics = vault.copy_keys(vault.copies()), [vault.public_key]
    for number in range(3):
        vault = rotate(vault, f"{NEW} {number}").vault
        publics.append(vault.public_key)
        vault.unlock(f"{NEW} {number}")

    assert keys_of(vault.folder, f"{NEW} 2") == keys
    olds = [f"identity-old-{digits(public)}.age" for public in publics[:-1]]
    assert set(names_in(vault.folder)) == {"identity.age", "vault.db", *olds}


# Crashes

STEPS = [
    "write_new_private",
    "sync",
    "_reseal_copies",
    "within",
    "committed",
    "_erase_old_seals",
    "first rename",
    "last rename",
]
IDENTITY_STEPS = ("write_new_private", "last rename")  # only for an identity in the folder


def kill_at(step: str, after: bool) -> None:
    """Makes this process kill itself at a step."""

    def killed(name: str, count: int = 1):
        real, calls = getattr(module, name), []

        def stand_in(*args, **kwargs):
            calls.append(name)
            if len(calls) == count and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, stand_in)

    if step == "within":
        killed("reseal_copy", 2)
    elif step == "committed":
        killed("_reseal_copies")
    elif step.endswith("rename"):
        killed("_rename", 1 if step == "first rename" else 2)
    else:
        killed(step)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_the_vault_opens_with_exactly_one_identity(vault, tmp_path, step, after, elsewhere):
    keys, (identity, public_key) = vault.copy_keys(vault.copies()), new_identity()
    (tmp_path / "elsewhere.age").write_bytes(lock_quickly(identity, NEW))
    child = os.fork()
    if child == 0:
        try:
            kill_at(step, after)
            rotate(vault, NEW, public_key if elsewhere else None)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or (elsewhere and step in IDENTITY_STEPS and status == 0)

    opened, ways = Vault(vault.folder), [(PASSPHRASE, None), (NEW, None), (NEW, tmp_path / "elsewhere.age")]
    fitting = []
    for way in ways:
        try:
            opened.unlock(*way)
            fitting.append(way)
        except VaultError:
            continue
        assert opened.copy_keys(opened.copies()) == keys
    assert len(fitting) == 1
    rotated = opened.public_key != vault.public_key
    assert fitting[0][0] == (NEW if rotated else PASSPHRASE)

    resumed_record = rotate(opened, "another passphrase")

    assert keys_of(vault.folder, "another passphrase") == keys
    assert (
        open_identity(vault.folder / "identity.age", "another passphrase").public_key
        == resumed_record.vault.public_key
    )
    olds = list(vault.folder.glob("identity-old-*.age"))
    opening = []
    for path in olds:
        for passphrase in (PASSPHRASE, NEW):
            try:
                opening.append(open_identity(path, passphrase).public_key)
            except PassphraseError:
                continue
    assert vault.public_key in opening, "the first identity's file is never lost"
    assert len(opening) == len(olds)


# Packs and folders of before


def test_a_pack_of_before_is_merged_with_the_old_identity(vault, tmp_path):
    """Another issuer pushed a record before it knew of the rotation."""
    issuer = Vault(shutil.copytree(vault.folder, tmp_path / "issuer"))
    record, key = issuer.begin_copy(issuer.bases()[0], "emil", "/out")
    issuer.mark_written(record, key, WHOLE)
    packed, old = pack_vault(issuer), vault.age_identity()
    done = rotate(vault, NEW)
    snapshot = open_pack(packed, old, "org/keys")

    assert "rotate" in refusal(merge, done.vault, snapshot)
    assert merge(done.vault, snapshot, old) == MergeReport(copies=1)
    assert merge(done.vault, snapshot, old) == MergeReport()

    done.vault.unlock(NEW)
    assert done.vault.copy_key(done.vault.copies()[-1]) == key
    assert [copy.recipient for copy in done.vault.copies()] == ["alice", "bob", "carol", "emil"]


def test_the_new_identity_opens_what_is_pushed_from_now_on_and_the_old_does_not(vault):
    old = vault.age_identity()
    done = rotate(vault, NEW)
    packed = pack_vault(done.vault)

    done.vault.unlock(NEW)
    assert open_pack(packed, done.vault.age_identity(), "x") == take_snapshot(done.vault)
    refusal(open_pack, packed, old, "x")
    refusal(open_pack, packed, AgeIdentity(new_identity()[0]), "x")
