"""What a hostile colleague may do to a vault before it is merged, who has the public key, the bases' secrets and every
tool there is: more than two hundred kinds, each a change of an honest vault's database.
"""

import hashlib
import hmac
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple, replace
from pathlib import Path

from hf_fingerprint.checkpoints.limits import MAX_PACK
from hf_fingerprint.keys import commitment, derive
from hf_fingerprint.vault import CopyRecord
from hf_fingerprint.vault.sealing import encrypt, new_identity, seal
from hf_fingerprint.vault.snapshots import insert_rows
from tests.helpers.hostile_vaults import WHOLE, Kind, MergeFixture


ESCAPES, BACKWARDS = "x\x1b[2J\x1b]0;owned\x07", "x\u202egnp.exe"
PATHS = ("../../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/../../b")


def _run_sql(*statements: str, loose: bool = False) -> Callable[[Path, MergeFixture], None]:
    """Statements, with `{...}` filled from the world; `loose` without the tables' constraints."""

    def change(path: Path, world: MergeFixture) -> None:
        names = {
            "victim": world.victim.copy_id,
            "shared": world.shared.copy_id,
            "base": world.base_id,
            "other": world.other_base,
            "erin": next(c.copy_id for c in world.theirs.copies.values() if c.recipient == "erin"),
        }
        if loose:
            _edit_schema(path, " NOT NULL", "")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            for statement in statements:
                connection.execute(statement.format(**names))

    return change


def _edit_schema(path: Path, old: str, new: str) -> None:
    """Rewrites the text of the tables' definitions, which SQLite then takes for true."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (old, new))
        connection.execute(f"PRAGMA schema_version = {version + 1}")


def _schema(old: str, new: str) -> Callable[[Path, MergeFixture], None]:
    return lambda path, world: _edit_schema(path, old, new)


def _set_value(table: str, column: str, value: object, which: str = "victim") -> Callable[[Path, MergeFixture], None]:
    """A value in one column of the victim's row, whatever the table says of it."""

    def change(path: Path, world: MergeFixture) -> None:
        key, wanted = {
            "copies": ("copy_id", world.victim.copy_id),
            "publications": ("copy_id", world.victim.copy_id),
            "bases": ("base_id", world.other_base),
            "questions": ("base_id", world.other_base),
            "bound": ("copy_id", next(iter(world.theirs.answering))),
            "issuers": ("name", "ci"),
        }[table]
        _edit_schema(path, " NOT NULL", "")
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            text = "CAST(? AS TEXT)" if isinstance(value, bytes) and value.startswith(b"text:") else "?"
            given = value[5:] if text != "?" else value
            connection.execute(f"UPDATE {table} SET {column} = {text} WHERE {key} = ?", (given, wanted))

    return change


def _forge_base(**fields: object) -> Callable[[Path, MergeFixture], None]:
    """Another document for the other base, sealed with its secret as anybody can who has it."""

    def change(path: Path, world: MergeFixture) -> None:
        base_id, whole, text, amplitudes, secret, _ = world.theirs.bases[world.other_base]
        document = {**json.loads(text), **fields}
        text = str(fields["text"]) if "text" in fields else json.dumps(document)
        message = f"{base_id}\n{whole}\n{text}\n".encode() + amplitudes
        genuine = hmac.new(derive(secret, "record"), message, hashlib.sha256).hexdigest()
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE bases SET document = ?, seal = ? WHERE base_id = ?", (text, genuine, base_id))

    return change


def _add_record(make: Callable[[MergeFixture], CopyRecord]) -> Callable[[Path, MergeFixture], None]:
    """One record more, made of the others."""

    def change(path: Path, world: MergeFixture) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            insert_rows(connection, "copies", [astuple(make(world))])

    return change


def _forged_record(
    world: MergeFixture, recipient: str = "mallory", copy_id: str = "0" * 16, **other: object
) -> CopyRecord:
    """A record that the colleague makes, which opens."""
    key = bytes(32)
    sealed = seal(key, copy_id, world.base_id, recipient, world.age_identity.public_key)
    commitment_hex = commitment(key, recipient, WHOLE)
    record = replace(world.victim, copy_id=copy_id, recipient=recipient, sealed=sealed, content_hash=WHOLE)
    return replace(replace(record, commitment=commitment_hex), **other)


def _resealed(content: bytes) -> Callable[[Path, MergeFixture], None]:
    """The victim's seal holds what the colleague likes."""
    return lambda path, world: _set_value("copies", "sealed", encrypt(content, world.age_identity.public_key))(
        path, world
    )


def _edit_bytes(edit: Callable[[bytes], bytes]) -> Callable[[Path, MergeFixture], None]:
    def change(path: Path, world: MergeFixture) -> None:
        path.write_bytes(edit(path.read_bytes()))

    return change


def _sparse(path: Path, world: MergeFixture) -> None:
    with path.open("r+b") as stream:
        stream.truncate(MAX_PACK + 4096)


def _page_loop(path: Path, world: MergeFixture) -> None:
    """The table of records becomes an inner page whose every child is itself."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'copies'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content, start = bytearray(path.read_bytes()), (page - 1) * size
    cells, at = 200, size - 200 * 6
    inner = bytearray(size)
    inner[:12] = b"\x05\0\0" + cells.to_bytes(2, "big") + at.to_bytes(2, "big") + b"\0" + page.to_bytes(4, "big")
    for cell in range(cells):
        inner[12 + 2 * cell : 14 + 2 * cell] = (at + 6 * cell).to_bytes(2, "big")
        inner[at + 6 * cell : at + 6 * cell + 6] = page.to_bytes(4, "big") + bytes(
            [0x80 | (cell + 1) >> 7, cell & 0x7F]
        )
    content[start : start + size] = inner
    path.write_bytes(bytes(content))


def _log_of_noise(path: Path, world: MergeFixture) -> None:
    Path(f"{path}-wal").write_bytes(bytes.fromhex("377f0682002de218") + bytes(range(256)) * 400)


def _endless_view(table: str) -> Callable[[Path, MergeFixture], None]:
    """A view without end in the place of a table."""

    def change(path: Path, world: MergeFixture) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("PRAGMA legacy_alter_table = ON")
            connection.execute(f"ALTER TABLE {table} RENAME TO kept")
            each = ", ".join(f"'x' AS {name}" for name in columns)
            connection.execute(
                f"CREATE VIEW {table} AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
                f"SELECT {each} FROM n"
            )

    return change


def _victim(world: MergeFixture) -> str:
    return world.victim.copy_id


def _kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    texts: dict[str, object] = {
        "a number": 7,
        "a fraction": 7.5,
        "a blob": b"\xff\x00\xfe",
        "no UTF-8": b"text:\xff\xfe\x80",
        "a NUL byte": b"text:x\x00y",
        "escapes": ESCAPES,
        "nothing": None,
        "a page": "x\ny",
        "an endless name": "x" * 1_000_000,
    }
    columns = {
        "copies": ("base_id", "recipient", "state", "out", "content_hash", "commitment", "created", "sealed"),
        "publications": ("repo", "state", "files", "revision", "account", "created"),
        "bases": ("content_hash", "document", "amplitudes", "secret", "seal"),
        "questions": ("content", "seal"),
        "issuers": ("public_key",),
    }
    valid = {
        ("publications", "account", "nothing"),
        ("copies", "out", "a number"),
        ("copies", "recipient", "a number"),
    }
    valid |= {("copies", "out", "a fraction"), ("copies", "recipient", "a fraction")}
    valid |= {("publications", "account", "a number"), ("publications", "account", "a fraction")}
    valid |= {("issuers", "public_key", "nothing")}  # SQLite takes none
    for table, names in columns.items():
        for column in names:
            for what, value in texts.items():
                if (table, column, what) not in valid:
                    kinds[f"{table}: {what} as {column}"] = Kind(_set_value(table, column, value), table)
    for column in ("copy_id", "base_id"):
        for value in (*PATHS, ESCAPES, BACKWARDS, "x", "0" * 15, "G" * 16, b"text:\xff" * 4):
            kinds[f"copies: {value!r} as {column}"] = Kind(_set_value("copies", column, value), "copies")
    for value in (BACKWARDS, " ", "x" * 256, "a\u2028b", "\ud7ff\ue000"):
        kinds[f"copies: {value!r} as recipient"] = Kind(_set_value("copies", "recipient", value), "copies", _victim)
    for value in (*PATHS, "org/..", "../..", "org/a--b", "org", "a/b/c", "https://x/y", "org/na me", "org/\u0430"):
        kinds[f"publications: {value!r} as repo"] = Kind(
            _set_value("publications", "repo", value), "publications", _victim
        )
    lists = [json.dumps({path: WHOLE}) for path in (*PATHS, ESCAPES)]
    lists += [f'{{"a": "{WHOLE}", "a": "{WHOLE}"}}', json.dumps({"a": WHOLE.upper()})]
    lists += ["[]", "7", "{", '{"a": NaN}', '{"a": 1}', "[" * 100_000, '{"a":' * 5000]
    lists += [json.dumps({f"f{n}": WHOLE for n in range(10_001)})]
    for value in lists:
        change = _set_value("publications", "files", value)
        kinds[f"publications: {value[:20]!r}... as files"] = Kind(change, "publications", _victim)
    kinds |= {
        "publications: confirmed without a commit": Kind(_set_value("publications", "revision", None), "publications"),
        "publications: begun with a commit": Kind(_set_value("publications", "state", "begun"), "publications"),
        "publications: a branch for a commit": Kind(_set_value("publications", "revision", "main"), "publications"),
        "issuers: a secret for a public key": Kind(
            _set_value("issuers", "public_key", "AGE-SECRET-KEY-1X"), "issuers"
        ),
        "issuers: escapes for a name": Kind(_set_value("issuers", "name", ESCAPES), "issuers"),
        "issuers: a number for a key": Kind(_set_value("issuers", "public_key", 7), "issuers"),
        "trigger set: of another base's seal": Kind(_set_value("questions", "content", b"what?"), "questions"),
        "bound: of a copy that is not there": Kind(_set_value("bound", "copy_id", "f" * 16), "bound"),
        "bases: gone": Kind(_run_sql("DELETE FROM bases WHERE base_id = '{other}'"), "copies"),
        "bases: with an id that is a path": Kind(_set_value("bases", "base_id", PATHS[0]), "bases"),
        "bases: with another id": Kind(_set_value("bases", "base_id", "0123456789ab"), "bases"),
    }
    documents: dict[str, dict[str, object]] = {
        "alpha of certainty": {"alpha": 0.99},
        "alpha no number": {"alpha": float("nan")},
        "escapes as source": {"source": f"/{ESCAPES}"},
        "a relative source": {"source": PATHS[0]},
        "a page as revision": {"revision": "a\nb"},
        "an endless length": {"length": 10**30},
        "a path as predecessor": {"replaces": PATHS[0]},
        "itself as predecessor": {"replaces": "itself"},
        "escapes as an ancestor": {"ancestor": {"source": f"/{ESCAPES}", "revision": None, "content_hash": "c2" * 32}},
        "a path as an ancestor": {"ancestor": {"source": PATHS[0], "revision": None, "content_hash": "c2" * 32}},
        "an ancestor of everything": {"ancestor": {"source": "org/vit", "revision": None, "content_hash": 7}},
        "an ancestor with a secret": {"ancestor": {"source": "org/vit", "secret": "00" * 32}},
        "a list for an ancestor": {"ancestor": ["org/vit"]},
        "null for an ancestor": {"ancestor": None},
        "a deep document": {"text": "[" * 200_000},
        "an infinite document": {"text": '{"alpha": ' + "9" * 5000 + "}"},
        "a list for a shape": {"tensors": [["a", "F32", [[1]], "00"]]},
        "a hundred thousand carriers": {"carriers": [["a", 0.1]] * 100_000},
        "no code": {"family": "riddle"},
        "calibration of everything": {"calibration": {"inputs": "images", "images": 1, "max_kl": 9.0}},
    }
    kinds |= {f"bases: {name}": Kind(_forge_base(**fields), "bases") for name, fields in documents.items()}
    kinds |= {
        "bases: a base of other weights as predecessor": Kind(
            lambda path, world: _forge_base(replaces=world.base_id)(path, world), "bases"
        ),
        "copies: one of both, with another seal": Kind(
            lambda path, world: _run_sql(
                "UPDATE copies SET commitment = '" + "00" * 32 + "' WHERE copy_id = '{shared}'"
            )(path, world),
            "copies",
            lambda world: world.shared.copy_id,
        ),
        "copies: one of both, for another recipient": Kind(
            _run_sql("UPDATE copies SET recipient = 'mallory' WHERE copy_id = '{shared}'"),
            "copies",
            lambda world: world.shared.copy_id,
        ),
        "copies: the same twice under another id": Kind(
            _add_record(lambda world: replace(world.shared, copy_id="0" * 16)), "copies", lambda world: "0" * 16
        ),
        "copies: a new one twice under another id": Kind(
            _add_record(lambda world: replace(world.victim, copy_id="0" * 16)), "copies", lambda world: "0" * 16
        ),
        "copies: the seal of another": Kind(
            _add_record(lambda world: _forged_record(world, sealed=world.shared.sealed)),
            "copies",
            lambda world: "0" * 16,
        ),
        "copies: a dated commitment of another": Kind(
            _add_record(lambda world: _forged_record(world, commitment=world.shared.commitment)),
            "copies",
            lambda world: "0" * 16,
        ),
        "copies: a day that is none": Kind(
            _add_record(lambda world: _forged_record(world, created="2026-02-30T00:00:00+00:00")),
            "copies",
            lambda world: "0" * 16,
        ),
        "copies: a time without a zone": Kind(
            _add_record(lambda world: _forged_record(world, created="2026-02-20T00:00:00")),
            "copies",
            lambda world: "0" * 16,
        ),
        "copies: a commitment that it does not open": Kind(
            _set_value("copies", "commitment", "00" * 32), "copies", _victim, with_identity=True
        ),
        "copies: another's name on it": Kind(
            _set_value("copies", "recipient", "mallory"), "copies", _victim, with_identity=True
        ),
        "copies: a seal of another identity": Kind(
            lambda path, world: _set_value(
                "copies", "sealed", seal(bytes(32), world.victim.copy_id, world.base_id, "victim", new_identity()[1])
            )(path, world),
            "copies",
            _victim,
            with_identity=True,
        ),
        "copies: a cut seal": Kind(
            lambda path, world: _set_value("copies", "sealed", world.victim.sealed[:-1])(path, world),
            "copies",
            _victim,
            with_identity=True,
        ),
        "copies: a seal on a list": Kind(_resealed(b"[1]"), "copies", _victim, with_identity=True),
        "copies: a seal on a deep text": Kind(_resealed(b"[" * 7000), "copies", _victim, with_identity=True),
        "copies: a seal on no UTF-8": Kind(_resealed(b"\xff" * 100), "copies", _victim, with_identity=True),
        "copies: a seal on a short key": Kind(
            lambda path, world: _set_value(
                "copies",
                "sealed",
                seal(b"x", world.victim.copy_id, world.base_id, "victim", world.age_identity.public_key),
            )(path, world),
            "copies",
            _victim,
            with_identity=True,
        ),
        "copies: an endless seal": Kind(
            _set_value("copies", "sealed", b"age-encryption.org/v1\n-> " * 10**6), "copies"
        ),
        "copies: its base gone with it": Kind(
            _run_sql("DELETE FROM bases WHERE base_id = '{base}'"), "copies", loses_all=True
        ),
        "constraints that take forever": Kind(
            _schema("recipient TEXT NOT NULL", "recipient TEXT NOT NULL CHECK (length(randomblob(200000000)) > 0)"),
            "nothing",
        ),
        "an index on what takes forever": Kind(
            _run_sql("CREATE INDEX slow ON copies (copy_id) WHERE length(copy_id) > 0"), "nothing"
        ),
    }
    whole_database_kinds: dict[str, Callable[[Path, MergeFixture], None]] = {
        "no bytes": _edit_bytes(lambda content: b""),
        "no database": _edit_bytes(lambda content: b"<html>" * 1000),
        "half a database": _edit_bytes(lambda content: content[: len(content) // 2 // 4096 * 4096]),
        "a database of zeros": _edit_bytes(lambda content: content[:100] + bytes(len(content) - 100)),
        "ones in its pages": _edit_bytes(lambda content: content[:8192] + b"\xff" * (len(content) - 8192)),
        "a page that is its own child": _page_loop,
        "a page size that is none": _edit_bytes(lambda content: content[:16] + b"\x03\x00" + content[18:]),
        "a database beyond the limit": _sparse,
        "another format": _run_sql("UPDATE meta SET value = '4' WHERE key = 'format'"),
        "a format in bytes": _run_sql("UPDATE meta SET value = x'33' WHERE key = 'format'"),
        "a format with escapes": _run_sql(f"UPDATE meta SET value = '{ESCAPES}' WHERE key = 'format'"),
        "no format": _run_sql("DELETE FROM meta WHERE key = 'format'"),
        "no identity": _run_sql("DELETE FROM meta WHERE key = 'public_key'"),
        "no identity's key": _run_sql(f"UPDATE meta SET value = '{ESCAPES}' WHERE key = 'public_key'"),
        "another identity": lambda path, world: _run_sql(
            f"UPDATE meta SET value = '{new_identity()[1]}' WHERE key = 'public_key'"
        )(path, world),
        "a trigger": _run_sql("CREATE TRIGGER t AFTER INSERT ON copies BEGIN DELETE FROM bases; END"),
        "an extra view": _run_sql("CREATE VIEW more AS SELECT * FROM copies"),
        "a virtual table": _run_sql("CREATE VIRTUAL TABLE more USING fts5(x)"),
        "no issuers": _run_sql("DROP TABLE issuers"),
        "a column more": _run_sql("ALTER TABLE issuers ADD COLUMN more TEXT"),
        "a column of another name": _run_sql("ALTER TABLE issuers RENAME COLUMN name TO title"),
        "a column that is worked out": _schema(
            "created TEXT NOT NULL,", "created TEXT GENERATED ALWAYS AS (hex(zeroblob(100000000))) VIRTUAL,"
        ),
        "a definition that is none": _schema("CREATE TABLE copies", "CREATE TABLE copies_ copies"),
        "two tables of a name": _schema("CREATE TABLE bound", "CREATE TABLE copies"),
    }
    whole_database_kinds |= {
        f"a view without end for {table}": _endless_view(table) for table in ("meta", "bases", "copies", "issuers")
    }
    return kinds | {f"whole: {name}": Kind(change, None) for name, change in whole_database_kinds.items()}


KINDS = _kinds()
