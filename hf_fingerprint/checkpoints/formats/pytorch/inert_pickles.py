"""Read a pickle's contents without executing it.

A pickle is a program that imports names, calls them and sets attributes. Here its instructions only build a
description: a name becomes a [`GlobalRef`] and a call a [`CallRecord`]; other values are returned as such. Nothing is
imported, looked up or called, and Python's own unpickler is not used. The number of instructions is bounded, strings
are bounded by the file, nothing is copied twice, and keys that may be crafted to collide are compared by identity.
"""

import struct
from collections.abc import Callable
from mmap import mmap
from typing import Any

from hf_fingerprint.checkpoints.formats.descriptions import (
    MAX_SMALL_INT,
    CallRecord,
    GlobalRef,
    InertObject,
    InvalidPickleError,
    as_key,
)
from hf_fingerprint.checkpoints.limits import MAX_PICKLE_STEPS, MAX_PICKLE_TEXT


_MAX_DIGITS = 64  # bytes of a binary number, and characters of a decimal one
_MAX_LINE_BYTES = 1 << 20
_MAX_COPIED_BYTES = 4096  # bytes objects up to this size are copied out of the file
_DAMAGED, _MANY_DIGITS = "a pickle that is cut off or damaged", "a number of too many digits"


Build = Callable[[Any, Any], Any]


def read_pickle(
    data: bytes | mmap, start: int, build: Build, persistent_load: Callable[[Any], Any]
) -> tuple[Any, int]:
    """The description of one pickle, and its end.

    Args:
        data (`bytes` or `mmap`): the file.
        start (`int`): offset of the pickle.
        build (callable): from a callable and its arguments to what represents the call: a [`CallRecord`], or something
            more specific for known callables.
        persistent_load (callable): from a persistent id to what represents it, such as a storage.

    Returns:
        `(described, end)`: the description, and the offset after the pickle.

    Raises:
        [`InvalidPickleError`]: if it can't be read.
    """
    machine = _Machine(data, start, build, persistent_load)
    try:
        return machine.run(), machine.at
    except (LookupError, ValueError, TypeError, AttributeError, struct.error, OverflowError, RecursionError):
        raise InvalidPickleError(_DAMAGED) from None


class _Machine:
    """The pickle machine's state: the stack, the stacks below the marks, and the memo."""

    def __init__(self, data: bytes | mmap, start: int, build: Build, persistent_load: Callable[[Any], Any]):
        self.data, self.at, self.end = data, start, len(data)
        self.build, self.persistent_load = build, persistent_load
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.text = MAX_PICKLE_TEXT

    def run(self) -> Any:
        data, instructions = self.data, _INSTRUCTIONS
        for _ in range(MAX_PICKLE_STEPS):
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.stack.pop()
            instructions[code](self)
        raise InvalidPickleError(f"a pickle of more than {MAX_PICKLE_STEPS:,} steps")

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        begin = self.at
        if count > self.end - begin:
            raise InvalidPickleError(_DAMAGED)
        self.at = begin + count
        return self.data[begin : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self, encoding: str = "utf-8") -> str:
        """The text up to the next line feed."""
        stop = self.data.find(b"\n", self.at, self.at + _MAX_LINE_BYTES)
        if stop < 0:
            raise InvalidPickleError(_DAMAGED)
        found = self.take(stop - self.at)
        self.at += 1
        return found.decode(encoding, "surrogatepass")

    def digits(self) -> str:
        found = self.line()
        if len(found) > _MAX_DIGITS:
            raise InvalidPickleError(_MANY_DIGITS)
        return found

    def words(self, count: int) -> str:
        """A string of `count` bytes: UTF-8, else Latin-1, as in Python 2's pickles."""
        self.text -= count
        if self.text < 0:
            raise InvalidPickleError(f"a pickle with more than {MAX_PICKLE_TEXT >> 20} MB of text")
        raw = self.take(count)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    def raw(self, count: int) -> None:
        if count <= _MAX_COPIED_BYTES:
            self.push(self.take(count))
        elif count > self.end - self.at:
            raise InvalidPickleError(_DAMAGED)
        else:
            self.at += count
            self.push(memoryview(self.data)[self.at - count : self.at])

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """The last `count` items, in the order in which they were pushed."""
        if count > len(self.stack):
            raise InvalidPickleError(_DAMAGED)
        found = self.stack[-count:]
        del self.stack[-count:]
        return found

    def marked(self) -> list[Any]:
        """Pops the items above the last mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def make(self, kind: Any, args: Any) -> None:
        self.push(self.build(kind, args))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, CallRecord):
            target.items = target.items or []
            target = target.items
        if isinstance(target, list):
            target.extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, CallRecord):
            target.pairs = target.pairs or {}
            target = target.pairs
        if isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                target[as_key(key)] = value


def _number(machine: _Machine) -> None:
    text = machine.digits()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L")))


def _long(machine: _Machine, count: int) -> None:
    if count > _MAX_DIGITS:
        raise InvalidPickleError(_MANY_DIGITS)
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.push({})
    machine.set_items(items)


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _memoize(machine: _Machine, place: int) -> None:
    if place >= MAX_SMALL_INT:
        raise InvalidPickleError(_DAMAGED)
    machine.memo[place] = machine.stack[-1]


def _call_with_names(machine: _Machine) -> None:
    kind, args, named = machine.pop(3)
    machine.make(kind, (args, named))


def _set_state(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, InertObject):
        target.set_state(state)


def _name(machine: _Machine) -> None:
    module, name = machine.pop(2)
    named = isinstance(module, str) and isinstance(name, str)
    machine.push(GlobalRef(module, name) if named else CallRecord(module, name))


def _instance(machine: _Machine) -> None:
    kind = GlobalRef(machine.line(), machine.line())
    machine.make(kind, tuple(machine.marked()))


def _object(machine: _Machine) -> None:
    kind, *args = machine.marked()
    machine.make(kind, tuple(args))


def _extension(machine: _Machine, count: int) -> None:
    """An extension code, which each process resolves with its own registry."""
    machine.push(GlobalRef("extension", str(machine.number(count))))


def _refuse(machine: _Machine) -> None:
    raise InvalidPickleError(_DAMAGED)


_STOP = ord(".")
_CODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame, whose length only streams need
    b"(": _Machine.mark,
    b"0": _pop,
    b"1": _Machine.marked,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _number,
    b"L": _number,
    b"J": lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: _long(m, m.number(1)),
    b"\x8b": lambda m: _long(m, m.number(4)),
    b"F": lambda m: m.push(float(m.digits())),
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    b"S": lambda m: m.push(m.line().strip()[1:-1]),
    b"V": lambda m: m.push(m.line("raw-unicode-escape")),
    b"U": lambda m: m.push(m.words(m.number(1))),
    b"T": lambda m: m.push(m.words(m.number(4))),
    b"\x8c": lambda m: m.push(m.words(m.number(1))),
    b"X": lambda m: m.push(m.words(m.number(4))),
    b"\x8d": lambda m: m.push(m.words(m.number(8))),
    b"C": lambda m: m.raw(m.number(1)),
    b"B": lambda m: m.raw(m.number(4)),
    b"\x8e": lambda m: m.raw(m.number(8)),
    b"\x96": lambda m: m.raw(m.number(8)),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": lambda m: m.push(tuple(m.pop(1))),
    b"\x86": lambda m: m.push(tuple(m.pop(2))),
    b"\x87": lambda m: m.push(tuple(m.pop(3))),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.marked()),
    b"}": lambda m: m.push({}),
    b"d": _dict,
    b"\x8f": lambda m: m.push([]),  # a set
    b"\x90": lambda m: m.append(m.marked()),
    b"\x91": lambda m: m.push(tuple(m.marked())),  # a frozen set
    b"a": lambda m: m.append(m.pop(1)),
    b"e": lambda m: m.append(m.marked()),
    b"s": lambda m: m.set_items(m.pop(2)),
    b"u": lambda m: m.set_items(m.marked()),
    b"g": lambda m: m.push(m.memo[int(m.digits())]),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"p": lambda m: _memoize(m, int(m.digits())),
    b"q": lambda m: _memoize(m, m.number(1)),
    b"r": lambda m: _memoize(m, m.number(4)),
    b"\x94": lambda m: _memoize(m, len(m.memo)),
    b"c": lambda m: m.push(GlobalRef(m.line(), m.line())),
    b"\x93": _name,
    b"R": lambda m: m.make(*m.pop(2)),
    b"\x81": lambda m: m.make(*m.pop(2)),
    b"\x92": _call_with_names,
    b"b": _set_state,
    b"i": _instance,
    b"o": _object,
    b"\x82": lambda m: _extension(m, 1),
    b"\x83": lambda m: _extension(m, 2),
    b"\x84": lambda m: _extension(m, 4),
    b"P": lambda m: m.push(m.persistent_load(m.line())),
    b"Q": lambda m: m.push(m.persistent_load(m.stack.pop())),
}
_INSTRUCTIONS: list[Callable[[_Machine], Any]] = [_CODES.get(bytes([code]), _refuse) for code in range(256)]
