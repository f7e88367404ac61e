"""Jobs that several processes share: each is done once, and its result is written once.

Processes that open the same files share their jobs: on one machine, or on several with a disk that has file locks. A
process locks a job before it begins. The system releases the lock when the process ends, so another process takes up
what a killed one leaves.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.files import write_all
from hf_fingerprint.errors import FingerprintError, StorageError
from hf_fingerprint.launcher import is_first_launched, launch_id, process_count
from hf_fingerprint.printable import printable
from hf_fingerprint.vault.storage import file_error, translate_disk_errors


_LAUNCH = "only in launch"
RESULTS, JOB_LOCKS, LOCK = "results.jsonl", "locks", ".lock"
WAIT = 0.25  # seconds between two looks at what other processes have done
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class JsonRecord(Protocol):
    """A result that JSON can hold."""

    def to_dict(self) -> dict[str, Any]:
        """The record as values for JSON."""


R = TypeVar("R", bound=JsonRecord)


class JsonLinesStore(Generic[R]):
    """Records by key in a file of JSON lines, to which several processes may add.

    Each record is on disk when [`JsonLinesStore.add`] returns. An incomplete last line is of a killed process: the
    next record replaces it.

    Args:
        file (`Path`): the file. Lines of other versions are ignored.
        parse (callable): makes a record from a line's values, and raises `TypeError` or `KeyError` if it can't.
        is_final (callable, *optional*): whether a record holds for later launches too. If not, the next one does the
            job again. By default all do.

    Attributes:
        known (`dict`): the records by key.
    """

    def __init__(
        self,
        file: Path,
        parse: Callable[[Mapping[str, Any]], R],
        is_final: Callable[[R], bool] = lambda record: True,
    ):
        self._file, self._parse, self._is_final = file, parse, is_final
        self._launch, self._read = launch_id(), 0
        self.known: dict[str, R] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the records that other processes have added."""
        with (
            translate_disk_errors(f"{self._file} can't be used", self._file.parent),
            suppress(FileNotFoundError),
            self._file.open("rb") as stream,
        ):
            self._read_lines(stream)

    def add(self, key: str, record: R) -> R:
        """Stores a record, unless there is one with its key by now, and returns what is stored as it will be read."""
        values = record.to_dict()
        about = {"key": key} if self._is_final(record) else {"key": key, _LAUNCH: self._launch}
        line = json.dumps(about | values, allow_nan=False).encode() + b"\n"
        with (
            translate_disk_errors(f"{self._file} can't be written", self._file.parent),
            os.fdopen(_open_private(self._file, os.O_APPEND), "ab+", 0) as stream,
        ):
            self._lock(stream)
            self._read_lines(stream)
            if key in self.known:
                return self.known[key]
            os.ftruncate(stream.fileno(), self._read)
            write_all(stream, memoryview(line))
            os.fsync(stream.fileno())
            self._read += len(line)
        self.known[key] = self._parse(values)
        return self.known[key]

    def _lock(self, stream: BinaryIO) -> None:
        """Waits until no other process adds a record. The lock ends when the file is closed."""
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise _no_locks_error(self._file, error) from None

    def _read_lines(self, stream: BinaryIO) -> None:
        stream.seek(self._read)
        content = stream.read()
        size = content.rfind(b"\n") + 1
        for line in content[:size].splitlines():
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # a line of another version
                values = json.loads(line)
                if values.get(_LAUNCH, self._launch) == self._launch:
                    self.known[values["key"]] = self._parse(values)
        self._read += size


def job_key(**parts: Any) -> str:
    """The key of a job: a digest of everything that determines its result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:24]


class JobLocks:
    """One lock for each job, all in one empty file. Use it as a context manager.

    A lock belongs to a process: it keeps out other processes, not other threads. A process opens a file of locks once:
    closing it releases all its locks.

    Args:
        file (`Path`): the file.

    Raises:
        [`StorageError`]: if the disk has no file locks.
    """

    def __init__(self, file: Path):
        self._file = file
        with translate_disk_errors(f"{file} can't be used", file.parent):
            self._descriptor = _open_private(file)

    def __enter__(self) -> "JobLocks":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    @contextmanager
    def try_lock(self, key: str) -> Iterator[bool]:
        """Locks a job within the context, and yields whether it could: not if another process is doing the job."""
        place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
        if not self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, place):
            yield False
            return
        try:
            yield True
        finally:
            self._lock(fcntl.LOCK_UN, place)

    @contextmanager
    def wait_for(self, key: str) -> Iterator[None]:
        """Locks a job within the context, once no other process does it."""
        while True:
            with self.try_lock(key) as locked:
                if locked:
                    yield
                    return
            sleep(WAIT)

    def _lock(self, how: int, place: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, how, 1, place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise _no_locks_error(self._file, error) from None
        return True


def share_jobs(
    keys: Sequence[str],
    store: JsonLinesStore[R],
    locks: JobLocks,
    work: Callable[[int], R],
    wanted: Callable[[int], bool] = lambda index: True,
) -> Iterator[int]:
    """Does the jobs without a result, shares them with the other processes, and waits for those that others do.

    Yields the index of each job when its result is known, whichever process has done it.

    Args:
        keys (sequence of `str`): the key of each job's result.
        store ([`JsonLinesStore`]): the results.
        locks ([`JobLocks`]): the locks of these jobs.
        work (callable): does the job with an index.
        wanted (callable, *optional*): whether the job with an index is still wanted, by the results so far.
    """
    left = list(range(len(keys)))
    while True:
        store.refresh()
        yield from (i for i in left if keys[i] in store.known)
        left = [i for i in left if keys[i] not in store.known and wanted(i)]
        if not left:
            return
        done = _do_next(left, keys, store, locks, work)
        if done is None:
            sleep(WAIT)


@contextmanager
def open_private_folder(folder: Path, is_own: Callable[[str], bool]) -> Iterator[None]:
    """Creates or reopens a folder of results, which only its owner can read, and locks it.

    The processes of one launch share the folder: the first of them locks it.

    Args:
        folder (`Path`): the folder.
        is_own (callable): whether a file with this name may be in it.

    Raises:
        [`FingerprintError`]: if the folder has other contents, can't be used, or another launch is using it.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        others = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_own(path.name))
    except OSError as error:
        if is_disk_full_error(error):
            raise disk_full_error(folder) from None
        raise FingerprintError(f"{folder} can't be used ({error.strerror}): choose another --out.") from None
    if others:
        raise FingerprintError(
            f"{folder} has other contents ({', '.join(map(printable, others[:3]))}): choose an empty folder, or that "
            f"of an earlier run, for --out."
        )
    if not is_first_launched():
        yield
        return
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FingerprintError(f"Another run is running in {folder}: wait for it.") from None
    except OSError as error:
        raise file_error(f"{folder} can't be used", folder, error) from None
    try:
        yield
    finally:
        lock.release()


def do_jobs(
    keys: Sequence[str],
    work: Callable[[int], R],
    folder: Path | None,
    parse: Callable[[Mapping[str, Any]], R],
    is_final: Callable[[R], bool],
) -> Iterator[R]:
    """Yields the result of each job as it comes to be known.

    Args:
        keys, work: see [`share_jobs`].
        folder (`Path` or `None`): where the results are kept, and shared with other processes. Without a folder this
            process does all jobs, in order.
        parse, is_final (callable): see [`JsonLinesStore`].

    Raises:
        [`FingerprintError`]: if the folder can't be used, or several processes were launched without one.
    """
    if folder is None:
        if process_count() > 1:
            raise FingerprintError("Several processes share their work through a folder: give --out.")
        yield from map(work, range(len(keys)))
        return
    with open_private_folder(folder, {RESULTS, JOB_LOCKS}.__contains__), JobLocks(folder / JOB_LOCKS) as locks:
        store = JsonLinesStore(folder / RESULTS, parse, is_final)
        for index in share_jobs(keys, store, locks, work):
            yield store.known[keys[index]]


def _do_next(
    left: Sequence[int], keys: Sequence[str], store: JsonLinesStore[R], locks: JobLocks, work: Callable[[int], R]
) -> int | None:
    """Does the first job that no other process does, and returns its index; `None` if there is none."""
    for i in left:
        with locks.try_lock(keys[i]) as locked:
            if locked:
                store.refresh()
                if keys[i] not in store.known:  # another process may have finished it meanwhile
                    store.add(keys[i], work(i))
                return i
    return None


def _open_private(file: Path, flags: int = 0) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)


def _no_locks_error(file: Path, error: OSError) -> StorageError:
    reason = "its disk has no file locks" if error.errno in _NO_LOCKS else error.strerror
    return StorageError(f"{file} can't be locked ({reason}): choose a folder on another disk.")
