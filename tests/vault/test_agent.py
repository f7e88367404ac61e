import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest

from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.agent import MAX_SECONDS, find_identity, keep_identity, release_identity
from hf_fingerprint.vault.passphrase import PASSPHRASE_VARIABLE
from tests.helpers.small_models import PASSPHRASE, new_vault


IDENTITY, PUBLIC_KEY = "AGE-SECRET-KEY-1OF-A-TEST", "age1ofatest"
PROCESSES = Path("/proc")
pytestmark = pytest.mark.skipif(not PROCESSES.joinpath("self/cmdline").exists(), reason="needs the processes of Linux")


@pytest.fixture
def runtime(monkeypatch):
    """The runtime folder, whose path is short, as those of sockets must be."""
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "in the environment")
    yield folder
    release_identity(PUBLIC_KEY)
    shutil.rmtree(folder)


def until(condition):
    """Waits for a condition, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes(path):
    """The command lines and environments of the processes that keep an identity at a path."""
    found = {}
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            line, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"hf_fingerprint.vault.agent" in line and os.fsencode(path) in line:
            found[folder.name] = line + environment
    return found


def test_an_identity_is_kept_until_it_is_released(runtime):
    path = keep_identity(IDENTITY, PUBLIC_KEY, 60)

    assert path.parent.parent == runtime
    assert [find_identity(PUBLIC_KEY) for _ in range(3)] == [IDENTITY] * 3
    assert find_identity("age1another") is None
    assert release_identity(PUBLIC_KEY)
    until(lambda: not path.exists())
    assert find_identity(PUBLIC_KEY) is None and not release_identity(PUBLIC_KEY)


def test_it_ends_after_the_time(runtime):
    path = keep_identity(IDENTITY, PUBLIC_KEY, 0.5)
    until(lambda: not path.exists())
    assert find_identity(PUBLIC_KEY) is None


def test_a_later_call_replaces_an_earlier_one(runtime):
    keep_identity(IDENTITY, PUBLIC_KEY, 60)
    path = keep_identity(IDENTITY[::-1], PUBLIC_KEY, 60)
    until(lambda: len(processes(path)) == 1)
    assert find_identity(PUBLIC_KEY) == IDENTITY[::-1]


def test_nobody_else_can_reach_it_and_no_process_list_shows_it(runtime):
    path = keep_identity(IDENTITY, PUBLIC_KEY, 60)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (shown,) = processes(path).values()
    assert IDENTITY.encode() not in shown and b"in the environment" not in shown
    assert not [file for file in runtime.rglob("*") if file.is_file()]


def test_a_socket_that_was_left_behind_is_replaced(runtime):
    path = keep_identity(IDENTITY, PUBLIC_KEY, 60)
    (number,) = processes(path)
    os.kill(int(number), 9)
    until(lambda: find_identity(PUBLIC_KEY) is None)
    assert path.exists()

    keep_identity(IDENTITY, PUBLIC_KEY, 60)
    assert find_identity(PUBLIC_KEY) == IDENTITY


@pytest.mark.parametrize("how", ["others can enter it", "a link", "a file"])
def test_a_folder_that_is_not_the_users_alone_is_refused(runtime, how):
    folder = runtime / "hf_fingerprint"
    if how == "a link":
        (runtime / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(runtime / "elsewhere")
    elif how == "a file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o755)

    with pytest.raises(VaultError, match="you alone can enter"):
        keep_identity(IDENTITY, PUBLIC_KEY, 60)
    assert find_identity(PUBLIC_KEY) is None


@pytest.mark.parametrize("seconds", [0, -1, MAX_SECONDS + 1, float("nan")])
def test_it_is_kept_for_a_day_at_most(runtime, seconds):
    with pytest.raises(VaultError, match="24 hours"):
        keep_identity(IDENTITY, PUBLIC_KEY, seconds)


def test_a_path_that_is_too_long_for_a_socket_gets_a_clear_sentence(runtime, monkeypatch):
    long = runtime / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(VaultError, match="set XDG_RUNTIME_DIR"):
        keep_identity(IDENTITY, PUBLIC_KEY, 60)


def test_nothing_is_imported_from_the_working_folder(runtime, tmp_path, monkeypatch):
    """A suspect's folder may hold anything."""
    (tmp_path / "socket.py").write_text("raise SystemExit")
    (tmp_path / "hf_fingerprint").mkdir()
    (tmp_path / "hf_fingerprint" / "__init__.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    keep_identity(IDENTITY, PUBLIC_KEY, 60)
    assert find_identity(PUBLIC_KEY) == IDENTITY


def test_commands_need_no_passphrase_until_the_vault_is_locked(runtime, tmp_path, monkeypatch, capsys):
    vault = new_vault(tmp_path / "vault")
    arguments = ["vault", "check", "--vault", str(vault.folder)]
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    assert main(["vault", "unlock", "--vault", str(vault.folder), "--for", "15m"]) == 0
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    try:
        assert main(arguments) == 0
        assert "every record opened" in capsys.readouterr().out
    finally:
        assert main(["vault", "lock", "--vault", str(vault.folder)]) == 0
    assert main(arguments) == 2
    assert "A passphrase is needed" in capsys.readouterr().err
    assert Vault(vault.folder).unlocked is False


@pytest.mark.parametrize("duration", ["15", "m", "-5m", "1d", "0m", "25h", "15m; ls", "9999999h"])
def test_a_duration_that_is_none_is_refused(runtime, tmp_path, monkeypatch, capsys, duration):
    vault = new_vault(tmp_path / "vault")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    assert main(["vault", "unlock", "--vault", str(vault.folder), f"--for={duration}"]) == 2
    assert "--for" in capsys.readouterr().err
    assert find_identity(vault.public_key) is None


def test_what_is_kept_is_not_written_to_a_core_dump(runtime):
    path = keep_identity(IDENTITY, PUBLIC_KEY, 60)
    (number,) = processes(path)
    limits = PROCESSES.joinpath(number, "limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]
