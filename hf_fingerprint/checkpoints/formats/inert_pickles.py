"""Read a pickle's contents without executing it.

A pickle is a program that imports names, calls them and sets attributes. Here its instructions only build a
description: dictionaries, lists, strings and numbers are returned as such, a name becomes a [`GlobalRef`] and a call a
[`CallRecord`]. Nothing is imported, looked up or called, so a hostile file has nothing to run. Python's own unpickler
is not used.

The number of instructions is bounded, strings are bounded by the file, and nothing is copied more often than it was
written. Keys that may be crafted to collide are compared by identity.
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
    except InvalidPickleError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, struct.error, OverflowError, RecursionError):
        raise InvalidPickleError("a pickle that is cut off or damaged") from None


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
            raise InvalidPickleError("a pickle that is cut off or damaged")
        self.at = begin + count
        return self.data[begin : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def line(self, encoding: str = "utf-8") -> str:
        """The text up to the next line feed."""
        stop = self.data.find(b"\n", self.at, self.at + _MAX_LINE_BYTES)
        if stop < 0:
            raise InvalidPickleError("a pickle that is cut off or damaged")
        found = self.take(stop - self.at)
        self.at += 1
        return found.decode(encoding, "surrogatepass")

    def digits(self) -> str:
        found = self.line()
        if len(found) > _MAX_DIGITS:
            raise InvalidPickleError("a number of too many digits")
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
            self.stack.append(self.take(count))
        elif count > self.end - self.at:
            raise InvalidPickleError("a pickle that is cut off or damaged")
        else:
            self.at += count
            self.stack.append(memoryview(self.data)[self.at - count : self.at])

    def marked(self) -> list[Any]:
        """Pops the items above the last mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def make(self, kind: Any, args: Any) -> None:
        self.stack.append(self.build(kind, args))

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
    machine.stack.append({"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L")))


def _long(machine: _Machine, count: int) -> None:
    if count > _MAX_DIGITS:
        raise InvalidPickleError("a number of too many digits")
    machine.stack.append(int.from_bytes(machine.take(count), "little", signed=True))


def _tuple(machine: _Machine, count: int) -> None:
    stack = machine.stack
    if len(stack) < count:
        raise InvalidPickleError("a pickle that is cut off or damaged")
    stack[-count:] = [tuple(stack[-count:])]


def _marked_tuple(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append(tuple(items))


def _marked_list(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append(items)


def _appends(machine: _Machine) -> None:
    items = machine.marked()
    machine.append(items)


def _set_items(machine: _Machine) -> None:
    items = machine.marked()
    machine.set_items(items)


def _pair(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _append(machine: _Machine) -> None:
    value = machine.stack.pop()
    machine.append([value])


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _memoize(machine: _Machine, place: int) -> None:
    if place >= MAX_SMALL_INT:
        raise InvalidPickleError("a pickle that is cut off or damaged")
    machine.memo[place] = machine.stack[-1]


def _call(machine: _Machine) -> None:
    args, kind = machine.stack.pop(), machine.stack.pop()
    machine.make(kind, args)


def _call_with_names(machine: _Machine) -> None:
    named, args, kind = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.make(kind, (args, named))


def _set_state(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, InertObject):
        target.set_state(state)


def _name(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    named = isinstance(module, str) and isinstance(name, str)
    machine.stack.append(GlobalRef(module, name) if named else CallRecord(module, name))


def _instance(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    args = machine.marked()
    machine.make(GlobalRef(module, name), tuple(args))


def _object(machine: _Machine) -> None:
    kind, *args = machine.marked()
    machine.make(kind, tuple(args))


def _extension(machine: _Machine, count: int) -> None:
    """An extension code, which each process resolves with its own registry."""
    machine.stack.append(GlobalRef("extension", str(machine.number(count))))


def _refuse(machine: _Machine) -> None:
    raise InvalidPickleError("a pickle that is cut off or damaged")


_STOP = ord(".")
_CODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame, whose length only streams need
    b"(": _Machine.mark,
    b"0": _pop,
    b"1": _Machine.marked,
    b"2": lambda m: m.stack.append(m.stack[-1]),
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": _number,
    b"L": _number,
    b"J": lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
    b"K": lambda m: m.stack.append(m.number(1)),
    b"M": lambda m: m.stack.append(m.number(2)),
    b"\x8a": lambda m: _long(m, m.number(1)),
    b"\x8b": lambda m: _long(m, m.number(4)),
    b"F": lambda m: m.stack.append(float(m.digits())),
    b"G": lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
    b"S": lambda m: m.stack.append(m.line().strip()[1:-1]),
    b"V": lambda m: m.stack.append(m.line("raw-unicode-escape")),
    b"U": lambda m: m.stack.append(m.words(m.number(1))),
    b"T": lambda m: m.stack.append(m.words(m.number(4))),
    b"\x8c": lambda m: m.stack.append(m.words(m.number(1))),
    b"X": lambda m: m.stack.append(m.words(m.number(4))),
    b"\x8d": lambda m: m.stack.append(m.words(m.number(8))),
    b"C": lambda m: m.raw(m.number(1)),
    b"B": lambda m: m.raw(m.number(4)),
    b"\x8e": lambda m: m.raw(m.number(8)),
    b"\x96": lambda m: m.raw(m.number(8)),
    b")": lambda m: m.stack.append(()),
    b"t": _marked_tuple,
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"]": lambda m: m.stack.append([]),
    b"l": _marked_list,
    b"}": lambda m: m.stack.append({}),
    b"d": _dict,
    b"\x8f": lambda m: m.stack.append([]),  # a set
    b"\x90": _appends,
    b"\x91": _marked_tuple,  # a frozen set
    b"a": _append,
    b"e": _appends,
    b"s": _pair,
    b"u": _set_items,
    b"g": lambda m: m.stack.append(m.memo[int(m.digits())]),
    b"h": lambda m: m.stack.append(m.memo[m.number(1)]),
    b"j": lambda m: m.stack.append(m.memo[m.number(4)]),
    b"p": lambda m: _memoize(m, int(m.digits())),
    b"q": lambda m: _memoize(m, m.number(1)),
    b"r": lambda m: _memoize(m, m.number(4)),
    b"\x94": lambda m: _memoize(m, len(m.memo)),
    b"c": lambda m: m.stack.append(GlobalRef(m.line(), m.line())),
    b"\x93": _name,
    b"R": _call,
    b"\x81": _call,
    b"\x92": _call_with_names,
    b"b": _set_state,
    b"i": _instance,
    b"o": _object,
    b"\x82": lambda m: _extension(m, 1),
    b"\x83": lambda m: _extension(m, 2),
    b"\x84": lambda m: _extension(m, 4),
    b"P": lambda m: m.stack.append(m.persistent_load(m.line())),
    b"Q": lambda m: m.stack.append(m.persistent_load(m.stack.pop())),
}
_INSTRUCTIONS: list[Callable[[_Machine], Any]] = [_CODES.get(bytes([code]), _refuse) for code in range(256)]
