"""Tampers with one row of a vault, in any table and column, or overwrites bytes of its file, and traces two leaks.

    python -m examples.benchmarks.tampered_rows --out bench_output/vaults   # 1,000 recipients, every column
    python -m examples.benchmarks.tampered_rows --quick               # a small run that shows that it works

One leak's record is unchanged, the other's is damaged. The first must be accused as before. The second may be accused
if its record's key still opens; otherwise the outcome must not be "nobody".
"""

import argparse
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.progress import track

from examples._common.real_inputs import save_timm
from examples._common.results import Figure, add_results_option, figure_table, report
from examples.benchmarks.speed import PASSPHRASE
from examples.benchmarks.verdicts_scale import new_vault, opened, record
from hf_fingerprint import Vault, issue, trace
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.vault import (
    add_issuer,
    begin_publication,
    begin_training,
    confirm_publication,
    new_issuer_key,
    store,
)
from hf_fingerprint.vault.check import check_vault
from hf_fingerprint.vault.sealing import open_identity


VICTIM, OTHER = "victim", "other"
LONG = "x" * 1_000_000


@dataclass(frozen=True)
class Damage:
    """A change to one value.

    Attributes:
        table, column (`str`): the place of the value.
        value: the new value; a `memoryview` is stored as text that is not UTF-8.
        name (`str`): a description.
    """

    table: str
    column: str
    value: Any
    name: str


@dataclass
class Counts:
    """Counts over all damages."""

    damages: int = 0
    others_traced: int = 0
    named: int = 0
    without_effect: int = 0
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Testbed:
    """A vault and two leaked copies of one base: one recipient's record is damaged, the other's is unchanged."""

    folder: Path
    victim: Path
    other: Path
    copy_id: str
    base_id: str


def make_testbed(work: Path, recipients: int) -> Testbed:
    """Returns a vault with rows in every table, and a key cache from an earlier trace."""
    store.open_identity = open_identity
    torch.manual_seed(0)
    model = save_timm(timm.create_model("test_vit"), work / "base")
    second = save_timm(timm.create_model("test_efficientnet"), work / "second")
    vault = new_vault(work / "vault")
    with opened(second, vault, 10) as issuer:
        record(vault, issuer.base, ["elsewhere"])
    with opened(model, vault, recipients) as issuer:
        copies = {name: issue(model, name, vault, work / name).path for name in (VICTIM, OTHER)}
        record(vault, issuer.base, [f"recipient {number:04}" for number in range(recipients - 2)])
        begin_training(vault, issuer.base, "in training")
        vault.add_trigger_set(issuer.base, b"questions")
        base_id = issuer.base.base_id
    for copy in vault.copies(base_id, begun=False)[:20]:
        begin_publication(vault, copy.copy_id, f"org/{copy.copy_id}", {"model.safetensors": "00" * 32}, copy.copy_id)
        confirm_publication(vault, copy.copy_id, "00" * 20)
        with vault.connect() as connection:
            connection.execute("INSERT INTO bound VALUES (?)", (copy.copy_id,))
    add_issuer(vault, new_issuer_key(work / "issuer.key"), "ci")
    trace(copies[OTHER], vault)
    age_identity = vault.age_identity()
    store.open_identity = lambda path, passphrase: age_identity  # unsealing takes a second each time
    with vault.connect() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    victim = vault.copies(base_id, VICTIM)[0].copy_id
    return Testbed(vault.folder, copies[VICTIM], copies[OTHER], victim, base_id)


def damages(testbed: Testbed) -> Iterator[Damage]:
    """Yields, for every column of every table, invalid values and the value of another row."""
    with closing(sqlite3.connect(testbed.folder / "vault.db")) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for each in tables:
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({each})").fetchall():
                values = {
                    "nothing": None,
                    "empty": b"" if kind == "BLOB" else "",
                    "escapes": "\x1b[2J\x1b[31m\u202enobody\nAccused: alice",
                    "bytes": bytes(range(256)),
                    "no UTF-8": memoryview(b"\xff\xfe\x80"),
                    "a number": -(2**62),
                    "long": LONG,
                }
                shape = connection.execute(f"SELECT {column} FROM {each} WHERE {_where(each, testbed, other=True)}")
                found = shape.fetchone()
                if found is not None:
                    values["another row's"] = found[0]
                for name, value in values.items():
                    yield Damage(each, column, value, name)


def tampered(testbed: Testbed, damage: Damage, folder: Path) -> bool:
    """Copies the vault, changes one value despite its schema, and returns whether a value was changed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(testbed.folder, folder)
    with closing(sqlite3.connect(folder / "vault.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        schema = connection.execute("SELECT rowid, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        for number, sql in schema:
            loose = sql.replace(" NOT NULL", "").replace("CHECK (state IN", "CHECK (1 OR state IN")
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE rowid = ?", (loose, number))
    with closing(sqlite3.connect(folder / "vault.db", isolation_level=None)) as connection:
        text = isinstance(damage.value, memoryview)
        value = bytes(damage.value) if text else damage.value
        new = "CAST(? AS TEXT)" if text else "?"
        row = f"rowid = (SELECT min(rowid) FROM {damage.table} WHERE {_where(damage.table, testbed)})"
        if "rowid" not in _keys(connection, damage.table):
            row = _where(damage.table, testbed)
        try:
            done = connection.execute(f"UPDATE {damage.table} SET {damage.column} = {new} WHERE {row}", (value,))
            changed = done.rowcount > 0
        except sqlite3.IntegrityError:  # another row's key
            changed = False
        connection.execute("PRAGMA writable_schema = ON")
        for number, sql in schema:
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE rowid = ?", (sql, number))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return changed


def _keys(connection: sqlite3.Connection, table: str) -> list[str]:
    sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    return [] if "WITHOUT ROWID" in sql else ["rowid"]


def _where(table: str, testbed: Testbed, other: bool = False) -> str:
    """Returns the condition for the damaged row, or for all others."""
    rows = {
        "copies": f"copy_id = '{testbed.copy_id}'",
        "publications": f"copy_id = '{testbed.copy_id}'",
        "bound": f"copy_id = '{testbed.copy_id}'",
        "bases": f"base_id = '{testbed.base_id}'",
        "bundles": f"base_id = '{testbed.base_id}'",
        "questions": f"base_id = '{testbed.base_id}'",
        "meta": "key = 'public_key'",
    }
    row = rows.get(table, "1")
    return f"NOT ({row})" if other else row


def trace_both(testbed: Testbed, folder: Path, what: str, counts: Counts, base: bool) -> None:
    """Traces both copies with a damaged vault."""
    counts.damages += 1
    found: dict[str, Any] = {}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            vault = Vault(folder)
            vault.unlock(PASSPHRASE)
            for name, suspect in ((OTHER, testbed.other), (VICTIM, testbed.victim)):
                found[name] = trace(suspect, vault)
            named = list(warned) or found[VICTIM].rows_not_used or check_vault(vault)
    except FingerprintError as error:
        counts.refused += 1  # the whole vault, by name
        counts.refusals.append(f"{what}: {error}")
        return
    except Exception as error:
        counts.wrong.append(f"{what}: {type(error).__name__}: {error}")
        return
    accused = {name: [each.recipient for each in result.accused] for name, result in found.items()}
    if accused[OTHER] == [OTHER]:
        counts.others_traced += 1
    elif not base or accused[OTHER] or found[OTHER].outcome is not Outcome.NOT_READABLE:
        counts.wrong.append(f"{what}: {OTHER} is not traced: {found[OTHER].outcome} {accused[OTHER]}")
    if accused[VICTIM] not in ([], [VICTIM]) or found[VICTIM].outcome in (Outcome.NOBODY, Outcome.NOT_COMPARABLE):
        counts.wrong.append(f"{what}: {VICTIM} ends in {found[VICTIM].outcome} {accused[VICTIM]}")
    if named:
        counts.named += 1
    elif accused[VICTIM] == [VICTIM]:
        counts.without_effect += 1
    else:
        counts.wrong.append(f"{what}: is not named")


def rows_figure(work: Path, recipients: int, every: int = 1) -> Figure:
    """Returns the figure over all changes of one value."""
    testbed, counts = make_testbed(work, recipients), Counts()
    for damage in track(list(damages(testbed))[::every], "changing one value", transient=True):
        if tampered(testbed, damage, work / "tampered"):
            what = f"{damage.table}.{damage.column} {damage.name}"
            trace_both(testbed, work / "tampered", what, counts, damage.table == "bases")
    return _figure(f"one row of {recipients:,} tampered with, any table, any column", counts)


def pages_figure(work: Path, recipients: int, places: int) -> Figure:
    """Returns the figure over places in the database where 100 bytes are overwritten."""
    testbed, counts, rng = make_testbed(work, recipients), Counts(), np.random.default_rng(0)
    size = (testbed.folder / "vault.db").stat().st_size
    for place in track(rng.integers(4096, size - 100, places).tolist(), "overwriting places", transient=True):
        shutil.rmtree(work / "tampered", ignore_errors=True)
        shutil.copytree(testbed.folder, work / "tampered")
        with (work / "tampered" / "vault.db").open("r+b") as stream:
            stream.seek(place)
            stream.write(rng.bytes(100))
        trace_both(testbed, work / "tampered", f"100 bytes at {place}", counts, True)
    return _figure(f"100 bytes of the database of {recipients:,} overwritten, {places} places", counts)


def _figure(what: str, counts: Counts) -> Figure:
    measured = (
        f"{counts.damages} damages: the other traced in {counts.others_traced}, named in {counts.named}, without any "
        f"effect in {counts.without_effect}, vault refused in {counts.refused}; wrong: {len(counts.wrong)}"
    )
    bound = 'all others trace as before; it is named; not "nobody"'
    return Figure(what, measured, bound, not counts.wrong, vars(counts))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both figures; the exit code is 0 if the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_output/vaults"))
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    add_results_option(parser)
    arguments = parser.parse_args(argv)
    work = arguments.out / "work"
    figures = []
    rows, pages = ((30, 5), (30, 10)) if arguments.quick else ((1000, 1), (1000, 100))
    for measure, sizes in ((rows_figure, rows), (pages_figure, pages)):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        figures.append(measure(work, *sizes))
        shutil.rmtree(work, ignore_errors=True)
    report(arguments, [figure_table(figures)])
    for figure in figures:
        for wrong in figure.counts["wrong"]:
            print(wrong, file=sys.stderr)
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
