"""A walk over the objects of an HDF5 file: its groups, and the messages that describe each data set.

It reads what h5py and Keras write: superblocks 0 to 3, object headers of both kinds, and all kinds of groups. HDF5
libraries are native or recurse without bounds, so the walk is this module's own: it follows no link out of the file,
visits each object once, and takes a bounded number of steps.
"""

import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import InvalidFileError
from hf_fingerprint.checkpoints.formats.keras.hdf5_bytes import NOWHERE, FractalHeap, Hdf5Bytes, find_global
from hf_fingerprint.checkpoints.formats.mapped_files import TRUNCATED
from hf_fingerprint.checkpoints.limits import MAX_NAME


HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LINK_INFO, _LINK, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x02, 0x06, 0x0C, 0x10, 0x11
_VARIABLE = 9


class HeaderMessage(NamedTuple):
    """A part of an object's header.

    Attributes:
        kind (`int`): its number: 6 a link, 8 a layout.
        body (`memoryview`): its bytes.
        shared (`bool`): whether the bytes only say where it is.
    """

    kind: int
    body: memoryview
    shared: bool


class Hdf5File(Hdf5Bytes):
    """The objects in the bytes of a file.

    Args:
        data (`np.ndarray`): the bytes, `uint8`.
        steps (`int`, *optional*): how many steps to take at most.

    Raises:
        [`InvalidFileError`]: if it is no HDF5 file, or its superblock is not supported.
    """

    def __init__(self, data: np.ndarray, steps: int | None = None):
        super().__init__(data, steps)
        self._view = memoryview(data)
        self.expect(0, HDF5_MAGIC)
        version = self.number(8, 1)
        at, sizes = (9, self.read(9, 2)) if version in (2, 3) else (13, self.read(13, 2))
        if version > 3 or sizes != b"\x08\x08":
            raise InvalidFileError("an unsupported kind of HDF5")
        at = {0: 24, 1: 28}.get(version, 12)
        if self.number(at, 8):
            raise InvalidFileError("an HDF5 file within a file")
        self.root = self.number(at + (40 if version < 2 else 24), 8)

    def objects(self, left_out: dict[str, str]) -> Iterator[tuple[str, list[HeaderMessage]]]:
        """Yields the name of each group and data set, such as `layers/dense/vars/0`, and its messages.

        Args:
            left_out (`dict[str, str]`): receives the names of damaged objects, each with a short reason.
        """
        waiting, seen = [("", self.root)], {self.root, NOWHERE}
        while waiting:
            name, address = waiting.pop()
            children: list[tuple[str, int]] = []
            try:
                messages = self.messages(address)
                yield name, messages
                for child in self._children(messages):
                    children.append(child)  # those before the damage, if there is any
            except InvalidFileError as error:
                if self.exhausted:
                    raise
                left_out[name or "/"] = str(error)
            for own, where in reversed(children):
                if where not in seen:
                    seen.add(where)
                    waiting.append((f"{name}/{own}"[-MAX_NAME:].lstrip("/"), where))

    def messages(self, address: int) -> list[HeaderMessage]:
        """The messages in the header of an object."""
        second = self.read(address, 4) == b"OHDR"
        if second:
            flags = self.number(address + 5, 1)
            at = address + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
            width, head = 1 << (flags & 3), 6 if flags & 4 else 4
            blocks = [(at + width, self.number(at, width))]
        else:
            if self.number(address, 1) != 1:
                raise InvalidFileError(TRUNCATED)
            head = 8
            blocks = [(address + 16, self.number(address + 8, 4))]
        found = []
        while blocks:
            self.spend()
            at, count = blocks.pop()
            self.view(at, count)
            end = at + count
            while at + head <= end:
                self.spend()
                kind, size, flags = struct.unpack_from("<BHB" if second else "<HHB", self._view, at)
                at += head
                if size > end - at:
                    raise InvalidFileError(TRUNCATED)
                message = HeaderMessage(kind, self._view[at : at + size], bool(flags & 2))
                at += size
                if kind == _CONTINUATION:
                    start, length = _unpack("<QQ", message.body)
                    if second and (length < 8 or self.read(start, 4) != b"OCHK"):
                        raise InvalidFileError(TRUNCATED)
                    blocks.append((start + 4, length - 8) if second else (start, length))
                else:
                    found.append(message)
        return found

    def _children(self, messages: list[HeaderMessage]) -> Iterator[tuple[str, int]]:
        """Yields the names and addresses of what a group holds. Links to elsewhere are passed over."""
        for message in messages:
            if message.kind == _SYMBOL_TABLE:
                yield from self._symbols(*_unpack("<QQ", message.body))
            elif message.kind == _LINK:
                yield from _parse_link(message.body)
            elif message.kind == _LINK_INFO:
                _, flags = _unpack("<BB", message.body)
                (heap,) = _unpack("<Q", message.body[10 if flags & 1 else 2 :])
                if heap != NOWHERE:
                    yield from self._dense_links(heap, *_unpack("<Q", message.body[18 if flags & 1 else 10 :]))

    def _dense_links(self, heap: int, tree: int) -> Iterator[tuple[str, int]]:
        links = FractalHeap(self, heap)
        for record in self.records(tree):
            yield from _parse_link(links.find(record[4:]))

    def _symbols(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        self.expect(heap, b"HEAP")
        names = self.number(heap + 24, 8)
        for _, leaf in self.leaves(tree, 0, 8):
            self.expect(leaf, b"SNOD")
            for number in range(self.number(leaf + 6, 2)):
                self.spend()
                offset, address = struct.unpack("<QQ", self.read(leaf + 8 + 40 * number, 16))
                start = names + offset
                yield _decode(self.view(start, min(MAX_NAME, max(len(self) - start, 0))).tobytes()), address

    def find_text(self, messages: list[HeaderMessage], wanted: str) -> str:
        """The attribute of an object that is a text of some name, or an empty one; it may be hostile."""
        for _, body, shared in (message for message in messages if message.kind == _ATTRIBUTE):
            with suppress(InvalidFileError):
                version, _, *sizes = _unpack("<BBHHH", body)
                sizes = [-(-size // 8) * 8 for size in sizes] if version == 1 else sizes
                at = 9 if version == 3 else 8
                name, kind = body[at : at + sizes[0]], body[at + sizes[0] : at + sum(sizes[:2])]
                if shared or len(kind) < 8 or _decode(bytes(name[:MAX_NAME])) != wanted:
                    continue
                content = body[at + sum(sizes) :]
                if kind[0] & 15 == _VARIABLE:
                    _, address, index = _unpack("<IQI", content)
                    content = memoryview(find_global(self, address, index))
                return _decode(bytes(content[:MAX_NAME]))
        return ""


def _parse_link(body: memoryview) -> Iterator[tuple[str, int]]:
    """Yields the name and address in a link message, unless the link is to a name or another file."""
    _, flags = _unpack("<BB", body)
    at, kind = 2, 0
    if flags & 8:
        at, kind = 3, bytes(body[2:3])[0] if len(body) > 2 else 1
    at += (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], "little")
    name = body[at + width : at + width + length]
    if kind == 0:
        (address,) = _unpack("<Q", body[at + width + length :])
        yield _decode(bytes(name[:MAX_NAME])), address


def _unpack(layout: str, body: memoryview) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, body)
    except struct.error:
        raise InvalidFileError(TRUNCATED) from None


def _decode(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")
