"""Mutates valid inputs, by bytes and by their format. The same seed gives the same input."""

import json
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np


Mutate = Callable[[bytes, np.random.Generator], bytes]
TOKENS = [
    *(b"\0", b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff", b"\r\n", b"\n---\n", b"{", b"}", b"[" * 8, b'"', b"\\u00"),
    *(b"NaN", b"-1", b"1e999", b"9" * 5000, b"../../x", b"\x1b[2J", b"\xed\xa0\x80", "\u202e\U0001f600".encode()),
    *(b"PK\x03\x04", b"\x80\x02", b"age-encryption.org/v1\n-> scrypt ", b"scrypt A 99", b"&a [*a, *a]", b"!!python/x"),
]  # fmt: skip
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 255, 1 << 31, (1 << 63) - 1, 1 << 64, 10**400, -(10**400), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "../../x", "/etc/passwd", "\x1b[2J\x07", "\ud800", "\u202e", "a" * 10_000),
    *([], {}, [[]], [None] * 1000, {"": {}}, {"a": [1, "b", None]}, [0, 1 << 62], "F32", "U8", "F99", "0" * 64),
]  # fmt: skip


def of_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes, removes, doubles or moves some bytes, or replaces them by values that parsers often mishandle."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        begin = int(rng.integers(0, len(found) + 1))
        end = min(len(found), begin + int(rng.integers(1, 1 + max(1, len(found) // 8))))
        match int(rng.integers(0, 7)):
            case 0:
                found[begin : begin + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                del found[begin:end]
            case 2:
                del found[begin:]
            case 3:
                found[begin:begin] = found[begin:end] * int(rng.integers(1, 4))
            case 4:
                found[begin:end] = rng.bytes(end - begin)
            case 5:
                found[begin:end] = TOKENS[int(rng.integers(0, len(TOKENS)))]
            case _:
                found[begin:begin] = TOKENS[int(rng.integers(0, len(TOKENS)))]
    return bytes(found)


def of_value(value: Any, rng: np.random.Generator) -> Any:
    """Replaces, removes or adds one part of a JSON value."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return _hostile(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(rng.integers(0, len(keys)))]
    changed = dict(value) if isinstance(value, dict) else list(value)
    match int(rng.integers(0, 8)):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[str(_hostile(rng))[:2000]] = changed[key]
        case 2 if isinstance(changed, list):
            changed.append(changed[key])
        case _:
            changed[key] = of_value(changed[key], rng)
    return changed


def _hostile(rng: np.random.Generator) -> Any:
    if rng.random() < 0.02:
        return json.loads("[" * 900 + "]" * 900)
    return VALUES[int(rng.integers(0, len(VALUES)))]


def of_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Mutates the values or the bytes of a JSON text."""
    if rng.random() < 0.25:
        return of_bytes(content, rng)
    value = json.loads(content)
    for _ in range(int(rng.integers(1, 3))):
        value = of_value(value, rng)
    return json.dumps(value).encode()


def of_lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes, doubles or removes one of several lines of JSON, or mutates any bytes."""
    lines = content.split(b"\n")
    if rng.random() < 0.25 or len(lines) < 2:
        return of_bytes(content, rng)
    place = int(rng.integers(0, len(lines) - 1))
    match int(rng.integers(0, 4)):
        case 0:
            lines.insert(place, lines[place])
        case 1:
            del lines[place]
        case _:
            lines[place] = of_json(lines[place], rng)
    return b"\n".join(lines)


def of_safetensors(content: bytes, rng: np.random.Generator) -> bytes:
    """Mutates the header of a safetensors file, under a correct or a wrong length, or any bytes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = of_json(content[8 : 8 + length], rng), content[8 + length :]
    claimed_length = len(header) if rng.random() < 0.8 else int(rng.choice([0, 1, len(header) + 1, 10**8, 1 << 62]))
    return claimed_length.to_bytes(8, "little") + header + (data if rng.random() < 0.8 else data[: len(data) // 2])


def of_database(content: bytes, rng: np.random.Generator) -> bytes:
    """Replaces a value in any table and row of a SQLite database, or mutates any bytes."""
    if rng.random() < 0.3:
        return of_bytes(content, rng)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(content[:18] + b"\1\1" + content[20:])  # not WAL, which memory knows nothing of
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
        filled = [name for (name,) in tables if connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]]
        table = filled[int(rng.integers(0, len(filled)))]
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        row, place = rows[int(rng.integers(0, len(rows)))], int(rng.integers(0, len(columns)))
        same = " AND ".join(f"{column} IS ?" for column in columns)
        try:
            change = f"UPDATE {table} SET {columns[place]} = ? WHERE {same}"
            connection.execute(change, (_cell(row[place], rng), *row))
            connection.commit()
        except (sqlite3.Error, OverflowError, UnicodeEncodeError):  # the schema takes no such value
            connection.rollback()
        changed = connection.serialize()
    return changed[:18] + content[18:20] + changed[20:]


def _cell(old: Any, rng: np.random.Generator) -> Any:
    """Returns another value for a column: its bytes or JSON mutated, or one of another type."""
    if rng.random() < 0.6 and old:
        if isinstance(old, bytes):
            return of_bytes(old, rng)
        if isinstance(old, str):
            spoil = of_json if old[:1] in "{[" else of_bytes
            return spoil(old.encode(), rng).decode("utf-8", "replace")
    value = _hostile(rng)
    return json.dumps(value) if isinstance(value, dict | list) else value


def png(width: int, height: int, bits: int = 8) -> bytes:
    """Returns a PNG of one color: few bytes for many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, size, data = zlib.compressobj(9), (1 + 3 * width * bits // 8) * height, bytearray()
    for start in range(0, size, 1 << 20):
        data += packer.compress(bytes(min(1 << 20, size - start)))
    data += packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", bytes(data)) + chunk(b"IEND", b"")


def header_bomb(size: int, unit: bytes = b'"a":[],') -> bytes:
    """Returns a safetensors file whose header has this many bytes and as many objects as possible."""
    header = b"{" + unit * (size // len(unit)) + b'"z":0}'
    return len(header).to_bytes(8, "little") + header
