"""Keeps a tracing identity open for a while, so that a day's work asks for its passphrase once.

[`keep_identity`] starts a process that holds the identity in memory and hands it to processes of the same user, over a
socket in a folder that nobody else can enter. It ends after the time, or by [`release_identity`].
"""

import contextlib
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault.passphrase import PASSPHRASE_VARIABLE


MAX_SECONDS = 24 * 3600
_GET, _END = b"get\n", b"end\n"
_TIMEOUT, _POLL = 2.0, 5.0  # seconds
_MAX_IDENTITY = 4096
_READY = b"ready\n"


def keep_identity(identity: str, public_key: str, seconds: float) -> Path:
    """Starts the process that keeps an identity, instead of one that keeps it already, and returns its socket.

    Args:
        identity (`str`): the identity, as age writes it.
        public_key (`str`): its public key, by which [`find_identity`] finds it.
        seconds (`float`): how long, at most a day.

    Raises:
        [`VaultError`]: if it can't be kept on this machine.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise VaultError("An identity is kept for more than 0 seconds and at most 24 hours: give another --for.")
    folder = _folder()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder):
        raise VaultError(f"{folder} is not a folder that you alone can enter: remove it, or set XDG_RUNTIME_DIR.")
    release_identity(public_key)
    path = _socket_path(public_key)
    environment = {name: value for name, value in os.environ.items() if name != PASSPHRASE_VARIABLE}
    # -P: nothing is imported from the working folder, which may hold a suspect
    command = [sys.executable, "-P", "-m", "hf_fingerprint.vault.agent", str(path), repr(float(seconds))]
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ready:
        process = subprocess.Popen(
            [*command, str(writing)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            env=environment,
            start_new_session=True,
        )
        os.close(writing)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as given:
            given.write(identity.encode())
        answer = ready.read()
    if answer == _READY:
        process.returncode = 0  # nobody waits for its end
    else:
        process.wait()
        raise VaultError(f"The identity can't be kept at {path}: set XDG_RUNTIME_DIR to a folder of yours.")
    return path


def find_identity(public_key: str) -> str | None:
    """The identity with a public key, if it is kept; `None` if not."""
    answer = _ask(public_key, _GET)
    return answer.decode(errors="replace") if answer else None


def release_identity(public_key: str) -> bool:
    """Ends the process that keeps an identity, and returns whether there was one."""
    return _ask(public_key, _END) is not None


def _ask(public_key: str, request: bytes) -> bytes | None:
    path = _socket_path(public_key)
    if not _is_private(path.parent) or not hasattr(socket, "AF_UNIX"):
        return None
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT)
            connection.connect(str(path))
            if _peer_uid(connection) != os.getuid():
                return None
            connection.sendall(request)
            found = b""
            while len(found) <= _MAX_IDENTITY and (part := connection.recv(_MAX_IDENTITY)):
                found += part
            return found
    except OSError:
        return None


def _folder() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR")
    return Path(given, "hf_fingerprint") if given else Path(tempfile.gettempdir(), f"hf_fingerprint-{os.getuid()}")


def _socket_path(public_key: str) -> Path:
    return _folder() / f"{sha256(public_key.encode()).hexdigest()[:16]}.sock"  # paths of sockets are short


def _is_private(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody else can enter it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _peer_uid(connection: socket.socket) -> int:
    """The user at the other end, where the system can say; elsewhere the folder keeps others out."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    size = struct.calcsize("3i")
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def _now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _serve(path: Path, seconds: float, ready: int) -> None:
    """Hands the identity from the standard input to those who ask, until the time is over.

    Once it listens, it says so to the descriptor `ready`.
    """
    until, identity = _now() + seconds, sys.stdin.buffer.read(_MAX_IDENTITY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of the memory would hold it
    os.umask(0o177)
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)  # of a process that was killed
        listener.bind(str(path))
        listener.listen()
        own = path.stat().st_ino
        try:
            os.write(ready, _READY)
            os.close(ready)
            while (left := until - _now()) > 0:
                listener.settimeout(min(left, _POLL))
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(_TIMEOUT)
                        request = connection.recv(len(_GET)) if _peer_uid(connection) == os.getuid() else b""
                        if request == _END:
                            _remove(path, own)  # before the answer, after which another process may take its place
                            return
                        if request == _GET and _now() < until:
                            connection.sendall(identity)
        finally:
            _remove(path, own)


def _remove(path: Path, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
