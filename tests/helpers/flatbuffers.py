"""FlatBuffers made by hand, of which a test damages one part."""

from struct import pack

import numpy as np


def flatbuffer(root: dict, identifier: bytes) -> bytes:
    """A file whose root table has some fields.

    Args:
        root (`dict`): by slot, a table (`dict`), tables or texts (`list`), a text (`str`), a vector (`bytes` or
            `np.ndarray`), or a number with its `struct` code, such as `("<i", 3)`.
        identifier (`bytes`): the four bytes that name the schema.
    """
    out = bytearray(pack("<I", 0) + identifier)
    _refer(out, 0, root)
    return bytes(out)


def _refer(out: bytearray, at: int, value) -> None:
    """Appends a value, and writes its offset at a place."""
    out.extend(bytes(-len(out) % 4))
    if isinstance(value, dict):
        _append_table(out, at, value)
        return
    out[at : at + 4] = pack("<I", len(out) - at)
    if isinstance(value, str):
        value = value.encode()
        out.extend(pack("<I", len(value)) + value + b"\0")
    elif isinstance(value, bytes):
        out.extend(pack("<I", len(value)) + value)
    elif isinstance(value, np.ndarray):
        out.extend(pack("<I", len(value)) + value.tobytes())
    else:
        start = len(out) + 4
        out.extend(pack("<I", len(value)) + bytes(4 * len(value)))
        for index, each in enumerate(value):
            _refer(out, start + 4 * index, each)


def _append_table(out: bytearray, at: int, fields: dict) -> None:
    slots, body, offsets = [0] * (max(fields, default=-1) + 1), bytearray(4), {}
    for slot, value in fields.items():
        slots[slot] = len(body)
        if isinstance(value, tuple):
            body.extend(pack(*value))
        else:
            offsets[slot] = value
            body.extend(bytes(4))
    vtable = pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), len(body), *slots)
    out.extend(vtable)
    start = len(out)
    out[at : at + 4] = pack("<I", start - at)
    body[:4] = pack("<i", len(vtable))
    out.extend(body)
    for slot, value in offsets.items():
        _refer(out, start + slots[slot], value)
