"""An owner's vault and a colleague's that is changed before it is merged, and what each such merge is held to."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_fingerprint import Issuer, Vault
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import register
from hf_fingerprint.vault import (
    CopyRecord,
    MergeReport,
    Snapshot,
    add_issuer,
    begin_publication,
    confirm_publication,
    merge,
    open_pack,
    read_vault_folder,
    take_snapshot,
)
from hf_fingerprint.vault.sealing import AgeIdentity, encrypt, new_identity
from hf_fingerprint.vault.unsealing import unseal_copy_key
from tests.helpers.small_models import PLAIN_SETTINGS, plain_arrays, save_plain, unlocked_vault


WHOLE, COMMIT = "f0" * 32, "5a" * 20
GOOD = ("bob", "carol")  # of whom theirs has copies that mine lacks; "victim" is the one whose rows are changed
ESCAPES, BACKWARDS = "x\x1b[2J\x1b]0;owned\x07", "x\u202egnp.exe"
PATHS = ("../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/../../b")


@dataclass(frozen=True)
class MergeFixture:
    """An owner's vault and a colleague's, of one identity, as they are before anything is changed.

    Attributes:
        root (`Path`): has `mine`, `theirs`, `model` and `copies`.
        age_identity ([`AgeIdentity`]): the tracing identity.
        theirs ([`Snapshot`]): the colleague's.
        victim, shared ([`CopyRecord`]): a record that only the colleague has, and one that both have.
        base_id, other_base (`str`): the base of all copies but the victim's second, and that one's.
    """

    root: Path
    age_identity: AgeIdentity
    theirs: Snapshot
    victim: CopyRecord
    shared: CopyRecord
    base_id: str
    other_base: str


def make_world(root: Path) -> MergeFixture:
    """Makes the two vaults, with real copies."""
    mine = unlocked_vault(root / "mine")
    with Issuer(save_plain(root / "model", plain_arrays(blocks=1)), mine, PLAIN_SETTINGS) as issuer:
        issuer.issue("alice", root / "copies" / "alice")
    shutil.rmtree(mine.folder / "locks", ignore_errors=True)
    theirs = Vault(shutil.copytree(mine.folder, root / "theirs"))
    with Issuer(root / "model", theirs) as issuer:
        for name in (*GOOD, "victim"):
            issuer.issue(name, root / "copies" / name)
    other = register(save_plain(root / "other", plain_arrays(seed=5, blocks=1)), theirs, PLAIN_SETTINGS)
    theirs.add_trigger_set(other, b"which?")
    record, key = theirs.begin_copy(other, "erin", "/copies/erin")
    theirs.mark_written(record, key, WHOLE, is_answering=True)
    for copy in theirs.copies():
        begin_publication(theirs, copy.copy_id, f"org/{copy.recipient}", {"model.safetensors": WHOLE}, "someone")
        confirm_publication(theirs, copy.copy_id, COMMIT)
    add_issuer(theirs, new_identity()[1], "ci")
    shutil.rmtree(theirs.folder / "locks", ignore_errors=True)
    snapshot = take_snapshot(theirs)
    assert snapshot.faults == ()
    records = {copy.recipient: copy for copy in snapshot.copies.values()}
    return MergeFixture(
        root,
        mine.age_identity(),
        snapshot,
        records["victim"],
        records["alice"],
        records["alice"].base_id,
        records["erin"].base_id,
    )


@dataclass(frozen=True)
class Kind:
    """What a colleague may have done.

    Attributes:
        change (callable): does it to a database file.
        table (`str` or `None`): whose row is refused by name; `None` if the database is refused whole, and `"nothing"`
            if all that is honest enters and nothing needs to be named.
        key (callable, *optional*): part of the name that is given.
        with_identity (`bool`): whether it shows with the tracing identity only.
        loses_all (`bool`): whether all copies go with it.
    """

    change: Callable[[Path, MergeFixture], None]
    table: str | None
    key: Callable[[MergeFixture], str] = lambda world: ""
    with_identity: bool = False
    loses_all: bool = False


def changed(kind: Kind, world: MergeFixture, folder: Path) -> Path:
    """The colleague's folder, changed."""
    shutil.copytree(world.root / "theirs", folder)
    kind.change(folder / "vault.db", world)
    return folder


def packed(folder: Path, world: MergeFixture) -> bytes:
    """The very bytes of a database as a pack."""
    content = bytearray((folder / "vault.db").read_bytes())
    if len(content) > 19:
        content[18:20] = b"\x01\x01"
    return encrypt(bytes(content), world.age_identity.public_key)


def entry_points(folder: Path, world: MergeFixture) -> dict[str, Callable[[], Snapshot]]:
    """How a local merge reads a colleague's vault, and how a pull does."""
    return {
        "folder": partial(read_vault_folder, folder),
        "pack": partial(open_pack, packed(folder, world), world.age_identity, "org/keys"),
    }


def check_merge(
    world: MergeFixture, mine: Vault, folder: Path, kind: Kind, read: Callable[[], Snapshot]
) -> MergeReport | None:
    """Merges a changed folder with the tracing identity, and checks the result.

    Returns:
        [`MergeReport`] or `None`: `None` if it was refused whole, as it must be.
    """
    before, files = take_snapshot(mine), _stamps(folder)
    try:
        report = merge(mine, read(), world.age_identity, "the other vault")
    except VaultError as error:
        assert kind.table is None, f"refused whole: {error}"
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        assert take_snapshot(mine) == before
        return None
    finally:
        assert _stamps(folder) == files, "the other vault was written to"
    assert kind.table is not None, "not refused"
    after = take_snapshot(mine)
    assert after.faults == ()
    assert _rows(before) <= _rows(after) <= _rows(before) | _rows(world.theirs)
    assert all(fault.describe().isprintable() and len(fault.describe()) < 600 for fault in report.refused)
    if kind.table == "nothing":
        assert report.refused == ()
    else:
        assert kind.key(world) in next(fault.key for fault in report.refused if fault.table == kind.table)
    for record in world.theirs.copies.values():
        if record.copy_id in after.copies:
            unseal_copy_key(after.copies[record.copy_id], world.age_identity)
        assert kind.loses_all or record.recipient not in GOOD or record.copy_id in after.copies
    return report


def _rows(snapshot: Snapshot) -> set[object]:
    tables = ("bases", "questions", "copies", "bound", "publications")
    rows = {row for table in tables for row in snapshot.rows(table).values()}
    return rows | set(snapshot.issuers.items())


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}
