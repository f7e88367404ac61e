"""Runs every command that writes on disks that fill up at 100 sizes, then frees space and runs it again.

    python -m examples.benchmarks.vault_disks --sizes 100

Run it as root, or under `unshare --user --map-root-user --mount`. A small disk in memory (tmpfs) holds the vault and a
ballast file that leaves a few pages free. A command must either succeed or end with an error that this disk is full.
Run again with free space, it must succeed without losing or doubling anything.
"""

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from pytest import MonkeyPatch
from safetensors.numpy import load_file, save_file

from examples._common.results import Table, add_results_option, report
from examples.benchmarks.vault_disks_cases import CASES as VAULT_CASES
from examples.benchmarks.vault_disks_cases import NEW, OLD, RECIPIENTS, Case, Place
from examples.benchmarks.vault_disks_queries import CASES as BLACKBOX_CASES
from examples.benchmarks.vault_disks_queries import build_blackbox_files, on_one_core
from hf_fingerprint import FingerprintConfig, Vault, issue, register
from hf_fingerprint.cli import main as commands
from hf_fingerprint.errors import VaultError
from hf_fingerprint.vault import passphrase_age
from tests.helpers.format_1 import FORMAT_1
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.loopback_suspect import LoopbackSuspect


TOKEN = "hf_the-owner-of-org"
CONFIG = FingerprintConfig(coalition=3, expected_recipients=4, amplitude=0.003)
DISK, ROOMY, PAGE = 8 << 20, 256 << 20, 4096
SENTENCES = ("is full", "make room", "free disk space")
CASES = VAULT_CASES | BLACKBOX_CASES


def run(arguments: list[str], log: Path) -> tuple[int, str]:
    """Runs a command in a child process, and returns its exit code and output."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            warnings.simplefilter("ignore")
            with log.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
                code = commands.main(arguments)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text()


def check_recovery(case: Case, place: Place, free: int) -> str | None:
    """Runs a command with this many bytes free, frees space and runs it again; returns a problem or `None`."""
    for path in place.small.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(place.others, ignore_errors=True)
    place.others.mkdir()
    case.before(place)
    arguments = [word.format(place) for word in case.arguments.split()]
    disk = os.statvfs(place.small)
    with (place.small / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(disk.f_bavail * disk.f_frsize - free, 1))
    code, output = run(arguments, place.work / "output")
    if code:
        if code != 2 or str(place.small) not in output or not any(each in output for each in SENTENCES):
            return f"ended with {code}: {output.strip()[-300:]}"
        if "backup" in output.replace("backup.db", ""):
            return f"asks for a backup: {output.strip()[-300:]}"
    (place.small / "ballast").unlink()
    if code:
        code, output = run(arguments, place.work / "output")
        if code:
            return f"stuck: {output.strip()[-300:]}"
    try:
        return None if case.holds(place) else "lost or doubled"
    except (VaultError, OSError, ValueError) as error:
        return f"lost: {error}"


@contextmanager
def small_disk(folder: Path, size: int = DISK) -> Iterator[Path]:
    """Mounts a disk in memory of 8 MB at a folder.

    Raises:
        [`PermissionError`]: if this user may not mount.
    """
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder]
    if subprocess.run(mounting, check=False, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError(f"{folder}: this user may not mount a disk: run as root or under `unshare`.")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def build(work: Path, small: Path, suspect: LoopbackSuspect) -> Place:
    """Makes the vaults, the model and the leak."""
    rng = np.random.default_rng(0)
    arrays = {f"blocks.{i}.attn.qkv.weight": rng.standard_normal((144, 48)).astype(np.float32) for i in range(8)}
    arrays["head.weight"] = rng.standard_normal((10, 48)).astype(np.float32)
    names = ("model", "leak", "full", "bare", "old", "sibling", "work", "others", "blackbox")
    place = Place(small, *(work / name for name in names), suspect=suspect)
    for folder in (place.model, place.old_vault, place.work, place.blackbox / "noted"):
        folder.mkdir(parents=True)
    save_file(arrays, place.model / "model.safetensors")
    (place.work / "new").write_text(NEW + "\n")
    Vault.create(place.bare_vault, OLD)
    vault = Vault(shutil.copytree(place.bare_vault, place.full_vault))
    base = register(str(place.model), vault, CONFIG)
    issue(str(place.model), "alice", vault, place.leak)
    leaked = load_file(place.leak / "model.safetensors")
    save_file(leaked, place.blackbox / "noted" / "model.safetensors", {"note": "which loaders don't read"})
    for number in range(RECIPIENTS):
        record, key = vault.begin_copy(base, f"recipient {number}", f"/copies/{number}")
        vault.mark_written(record, key, f"{number:064x}", is_issued=True)
    sibling = Vault(shutil.copytree(place.full_vault, place.sibling))
    record, key = sibling.begin_copy(base, "elsewhere", "/copies/elsewhere")
    sibling.mark_written(record, key, "f0" * 32, is_issued=True)
    with closing(sqlite3.connect(place.old_vault / "vault.db")) as connection:
        connection.executescript(f"PRAGMA journal_mode = WAL; {FORMAT_1}")
        connection.execute("INSERT INTO meta VALUES ('public_key', ?)", (vault.public_key,))
        connection.commit()
    return place


def measure(sizes: int, names: list[str], max_free: int) -> Counter[tuple[str, str]]:
    """Returns the outcomes of each command at this many sizes, up to `max_free` bytes."""
    counts: Counter[tuple[str, str]] = Counter()
    with ExitStack() as stack:
        patches = stack.enter_context(MonkeyPatch.context())
        patches.setattr(passphrase_age, "LOG_WORK", 2)  # makes passphrases fast
        patches.setenv("HF_FINGERPRINT_PASSPHRASE", OLD)
        commands.build_command()  # once, not in each child
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vault-disks-")))
        work = stack.enter_context(small_disk(top / "roomy", ROOMY))  # in memory too, since syncing is slow
        small = stack.enter_context(small_disk(work / "small"))
        hub = stack.enter_context(LoopbackHub())
        hub.point_client(patches, work / "cache")
        hub.account("owner", orgs={"org"}, token=TOKEN)
        patches.setenv("HF_TOKEN", TOKEN)
        patches.setattr(constants, "HF_HOME", str(small / "home"))  # for copies to push
        place = build(work, small, stack.enter_context(LoopbackSuspect()))
        chosen = [CASES[name] for name in names]
        if any(case.torch for case in chosen):
            stack.enter_context(on_one_core(patches))
        if any(name in BLACKBOX_CASES for name in names):
            build_blackbox_files(place, any(case.torch for case in chosen))
        with redirect_stdout(StringIO()):  # imports once what the children need
            commands.main(["trace", str(place.leak), "--vault", str(place.sibling)])
        for name in names:
            for number in range(sizes):
                hub.of_kind("dataset").pop("org/keys", None)
                hub.of_kind("model").pop("org/zoe", None)
                place.suspect.seen.clear()
                free = (CASES[name].max_free or max_free) * number // sizes // PAGE * PAGE
                found = check_recovery(CASES[name], place, free)
                counts[name, found or "right"] += 1
    return counts


def main() -> None:
    """Prints the counts; exits with 1 if a command was stuck or data was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=100)
    parser.add_argument("--max-free", type=int, default=400 << 10, help="the largest number of free bytes")
    parser.add_argument("--commands", nargs="*", default=list(CASES), choices=list(CASES))
    add_results_option(parser)
    arguments = parser.parse_args()
    counts = measure(arguments.sizes, arguments.commands, arguments.max_free)
    rows = tuple((f"`{name}`", f"{count} of {arguments.sizes}", outcome) for (name, outcome), count in counts.items())
    report(arguments, [Table("disks", "", ("command", "sizes", "outcome"), rows)])
    sys.exit(any(outcome != "right" for _, outcome in counts))


if __name__ == "__main__":
    main()
