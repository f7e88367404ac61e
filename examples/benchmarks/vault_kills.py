"""Kills `vault init` at 200 points, runs it again, and counts the folders that became a vault.

    python -m examples.benchmarks.vault_kills --kills 200

Three of four runs are killed at a counted step: a change to a folder or file, a sync, an instruction of SQLite. The
others are killed at a random time. The folder is new, empty, or has other files, like the top of a mounted disk. The
vault gets an identity, or only a public key. Every third run is killed a second time.
"""

import argparse
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from examples._common.results import Figure, add_results_option, figure_table, report
from hf_fingerprint.errors import FingerprintError, PassphraseError, VaultError
from hf_fingerprint.vault import Vault, passphrase_age
from hf_fingerprint.vault.sealing import new_identity


PASSPHRASE = "correct horse battery staple"
CHANGES = frozenset(["os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "sqlite3.connect"])
TICKS = 10  # instructions of SQLite for each step
FOLDERS, KINDS = ("new", "empty", "mounted"), ("with an identity", "marks only")


def count_steps(last: int | None) -> list[int]:
    """Counts the steps of this process from now on, and kills it at the last one."""
    steps = [0]

    def step(*_: Any) -> int:
        steps[0] += 1
        if steps[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writing:
            step()

    synced, connected = os.fsync, sqlite3.connect

    def fsync(descriptor: int) -> None:
        step()
        synced(descriptor)
        step()

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connected(*arguments, **options)
        connection.set_progress_handler(step, TICKS)
        return connection

    os.fsync, sqlite3.connect = fsync, connect
    sys.addaudithook(hook)
    return steps


def in_a_child(action: Callable[[], Any], last: int | None = None, seconds: float | None = None) -> tuple[int, int]:
    """Runs an action in a child process that is killed at a step, or after a time.

    Returns:
        `(status, steps)`: its exit code, -9 if it was killed, and its number of steps.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = count_steps(last)
            action()
            os.write(writing, str(steps[0]).encode())
            status = 0
        except VaultError:  # an earlier run was complete when it was killed
            pass
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(output or 0)


def prepare(folder: Path, kind: str) -> dict[str, bytes]:
    """Makes the folder as it was before the vault, and returns its contents."""
    if kind != "new":
        folder.mkdir(parents=True)
    if kind == "mounted":
        (folder / "lost+found").mkdir()
        (folder / "notes.txt").write_text("mine")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files in a folder and below, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_recovery(folder: Path, before: dict[str, bytes], public_key: str | None) -> str | None:
    """Runs the command again after a kill; returns what is wrong with the vault, or `None`."""
    left = contents(folder) if folder.is_dir() else {}
    if left.get("identity.age") and "vault.db" not in left:
        try:
            Vault.create(folder, "another passphrase")
            return "another passphrase made a vault of it"
        except PassphraseError:
            pass
    try:
        Vault.create(folder, PASSPHRASE if public_key is None else "", public_key)
    except FingerprintError as error:
        if "vault.db" not in left or "already holds a vault" not in str(error):
            return f"refused: {error}"
    vault = Vault(folder)
    if public_key is None:
        vault.unlock(PASSPHRASE)
    elif vault.public_key != public_key:
        return "another public key"
    with closing(sqlite3.connect(folder / "vault.db")) as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            return "damaged"
    now = contents(folder)
    if any(now.get(name) != content for name, content in before.items()):
        return "changed what was there before"
    if left.get("identity.age") not in (None, now.get("identity.age")):
        return "another identity"
    expected = {"vault.db"} | ({"identity.age"} if public_key is None else set())
    if now.keys() - before.keys() != expected:
        return f"left behind {sorted(now.keys() - before.keys() - expected)}"
    return None


def kill_and_complete(work: Path, number: int, steps: dict[str, int], seconds: float, rng: random.Random) -> str:
    """Kills the command once or twice; returns `completed`, or what is wrong."""
    kind, sealed = list(product(FOLDERS, KINDS))[number % 6]
    folder, public_key = work / str(number) / "vault", new_identity()[1] if sealed == "marks only" else None
    before = prepare(folder, kind)
    action = partial(Vault.create, folder, PASSPHRASE if public_key is None else "", public_key)
    kills = 2 if number % 3 == 2 else 1
    for _ in range(kills):
        if number % 4 == 3:
            in_a_child(action, seconds=rng.uniform(0, seconds))
        else:
            in_a_child(action, last=rng.randint(1, steps[sealed]))
    return check_recovery(folder, before, public_key) or "completed"


def run(kills: int, seed: int = 0) -> Counter[str]:
    """Runs this many kills, and counts the outcomes."""
    rng, work = random.Random(seed), Path(tempfile.mkdtemp(prefix="vault-kills-"))
    steps, began = {}, time.monotonic()
    for sealed in KINDS:
        public_key = new_identity()[1] if sealed == "marks only" else None
        action = partial(Vault.create, work / sealed, "" if public_key else PASSPHRASE, public_key)
        status, steps[sealed] = in_a_child(action)
        if status:
            raise SystemExit("vault init fails without being killed")
    seconds = (time.monotonic() - began) / len(KINDS)
    return Counter(kill_and_complete(work, number, steps, seconds, rng) for number in range(kills))


def main() -> None:
    """Prints the counts; exits with 1 if a folder did not become a vault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    add_results_option(parser)
    arguments = parser.parse_args()
    passphrase_age.LOG_WORK = 2  # so that kills hit changes to the disk, not the passphrase
    counts = run(arguments.kills, arguments.seed)
    measured = "; ".join(f"{count} of {arguments.kills} {outcome}" for outcome, count in counts.most_common())
    holds = counts["completed"] == arguments.kills
    what = f"`vault init` killed at {arguments.kills} points, and run again"
    report(arguments, [figure_table([Figure(what, measured, "nothing stuck, lost or doubled", holds)])])
    sys.exit(not holds)


if __name__ == "__main__":
    main()
