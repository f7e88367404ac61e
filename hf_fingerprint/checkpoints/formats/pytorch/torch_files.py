"""Read PyTorch's file formats: a zip (since 1.6, and TorchScript), or several pickles followed by the storages.

Storages are views of the memory-mapped file, so a tensor is not read before it is used. Only members that were
compressed afterwards are unpacked, up to a multiple of their size.
"""

import io
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, InvalidPickleError
from hf_fingerprint.checkpoints.formats.pytorch.inert_pickles import read_pickle
from hf_fingerprint.checkpoints.formats.pytorch.torch_calls import build_call, parse_storage
from hf_fingerprint.checkpoints.formats.torch_tensors import Storage
from hf_fingerprint.checkpoints.formats.zip_members import TRUNCATED, ZipMembers
from hf_fingerprint.checkpoints.limits import MAX_DIRECTORY


MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 1 << 29
_DATA, _CONSTANTS = "data.pkl", "constants.pkl"


class LoadedFile(NamedTuple):
    """Contents of a PyTorch file.

    Attributes:
        content (anything): the saved object, as [`read_pickle`] describes it.
        constants (anything): for TorchScript, the constants of its code, which include frozen weights.
    """

    content: Any
    constants: Any = None


def load_torch_file(path: Path) -> LoadedFile:
    """The contents of a file, with the bytes of its storages.

    Raises:
        [`InvalidPickleError`]: with the reason in a few words, if it can't be read.
        [`OSError`]: if it can't be opened.
    """
    with path.open("rb") as stream:
        try:
            data = mmap(stream.fileno(), 0, access=ACCESS_READ)
        except ValueError:
            raise InvalidPickleError("an empty file") from None
    if data[:4] == b"PK\x03\x04":
        with path.open("rb", buffering=0) as opened:
            return _from_zip(ZipMembers(opened, data))
    return LoadedFile(_from_pickles(data))


def load_torch_zip(raw: np.ndarray, largest_directory: int = MAX_DIRECTORY, largest_pickle: int = 0) -> LoadedFile:
    """The contents of a PyTorch zip that is a part of another file. None of its members may be compressed.

    Args:
        raw (`np.ndarray`): the zip's bytes, `uint8`.
        largest_directory (`int`, *optional*): bytes that the zip's directory may have.
        largest_pickle (`int`, *optional*): bytes that its pickle may have; by default, as for a file.

    Raises:
        [`InvalidPickleError`]: with the reason in a few words, if it can't be read.
    """
    members = ZipMembers(_Window(raw, largest_directory), raw, unpack=0)
    return _from_zip(members, largest_pickle or _LARGEST_PICKLE)


class _Window(io.RawIOBase):
    """Bytes in memory as a file for `zipfile`, without a copy, of which no read takes more than `most`."""

    def __init__(self, raw: np.ndarray, most: int):
        self._raw, self._most, self._at = raw, most, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, len(self._raw))[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = len(self._raw) if size < 0 else size
        found = self._raw[self._at : self._at + min(size, self._most + 1)].tobytes()
        if len(found) > self._most:
            raise InvalidPickleError("a zip with too large a directory")
        self._at += len(found)
        return found


def _from_zip(members: ZipMembers, largest_pickle: int = _LARGEST_PICKLE) -> LoadedFile:
    tops = [name.removesuffix(_DATA) for name in members if name.endswith(f"/{_DATA}") and name.count("/") == 1]
    if len(tops) != 1:
        raise InvalidPickleError("a zip without a PyTorch model")
    top = tops[0]
    order = members.read(f"{top}byteorder")
    if order is not None and order[:8].tobytes() == b"big":
        raise InvalidPickleError("a file of a machine with the other order of bytes")
    content = _from_member(members, f"{top}{_DATA}", f"{top}data/", largest_pickle)
    # the lite interpreter needs no constants.pkl, since its bytecode has them, too
    there = f"{top}{_CONSTANTS}" if f"{top}{_CONSTANTS}" in members else f"{top}bytecode.pkl"
    constants = _from_member(members, there, f"{top}constants/", largest_pickle)
    return LoadedFile(content, constants)


def _from_member(members: ZipMembers, name: str, folder: str, largest: int) -> Any:
    raw = members.read(name)
    if raw is None:
        return None
    if len(raw) > largest:
        raise InvalidPickleError("a pickle that is too large")
    known: dict[str, np.ndarray | None] = {}

    def persistent_load(found: Any) -> Storage:
        storage = parse_storage(found)
        if storage.key not in known:
            known[storage.key] = members.read(f"{folder}{storage.key}") if storage.key else None
        storage.data = known[storage.key]
        if storage.key and storage.data is None:
            raise InvalidPickleError(TRUNCATED)
        return storage

    return read_pickle(raw.tobytes(), 0, _make_builder(1), persistent_load)[0]


def _from_pickles(data: bytes | mmap, nested: bool = False) -> Any:
    """The object in a file of PyTorch's format before 1.6, or in a plain pickle."""
    storages: list[Storage] = []

    def persistent_load(found: Any) -> Any:
        if isinstance(found, tuple) and len(found) == 4 and found[0] == "module":  # a class with its source code
            return found[1]
        storages.append(parse_storage(found))
        return storages[-1]

    content, at = read_pickle(data, 0, _make_builder(0 if nested else 1), persistent_load)
    if type(content) is not int or content != MAGIC:
        return content
    _, at = read_pickle(data, at, build_call, persistent_load)
    machine, at = read_pickle(data, at, build_call, persistent_load)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise InvalidPickleError("a file of a machine with the other order of bytes")
    content, at = read_pickle(data, at, _make_builder(0 if nested else 1), persistent_load)
    keys, at = read_pickle(data, at, build_call, persistent_load)
    sizes = {storage.key: storage.element_bytes for storage in reversed(storages)}
    raw, found = np.frombuffer(data, np.uint8), {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in sizes or key in found:
            raise InvalidPickleError(TRUNCATED)
        count = int.from_bytes(raw[at : at + 8].tobytes(), "little") * sizes[key]
        at += 8
        if count > len(raw) - at:
            raise InvalidPickleError(TRUNCATED)
        found[key] = raw[at : at + count]
        at += count
    for storage in storages:
        storage.data = found.get(storage.key)
        if storage.key and storage.data is None:
            raise InvalidPickleError(TRUNCATED)
    return content


def _make_builder(nesting: int) -> Callable[[Any, Any], Any]:
    """A builder for [`read_pickle`]. With `nesting`, it also reads storages that were pickled as nested files."""

    def built(kind: Any, args: Any) -> Any:
        if not nesting or not isinstance(kind, GlobalRef) or (kind.module, kind.name) != _FROM_BYTES:
            return build_call(kind, args)
        raw = args[0] if isinstance(args, tuple) and len(args) == 1 else None
        found = _from_pickles(bytes(raw), nested=True) if isinstance(raw, bytes | memoryview) else None
        return found if isinstance(found, Storage) else CallRecord(kind, args)

    return built


_FROM_BYTES = "torch.storage", "_load_from_bytes"
