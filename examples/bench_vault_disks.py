"""Runs the commands that write to a vault on disks that fill up at 100 sizes, then makes room and runs them again.

    python examples/bench_vault_disks.py --sizes 100

Run it as root, or under `unshare --user --map-root-user --mount`. A small disk in memory (tmpfs) holds the vault and a
ballast file that leaves a few pages free. A command either does what it should, or ends with the sentence that this
disk is full. Run again with room, it does what it should, once.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from pytest import MonkeyPatch
from safetensors.numpy import save_file
from typer.main import get_command


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from format_1 import FORMAT_1
from loopback_hub import LoopbackHub

from hf_fingerprint import Settings, Vault, issue, register
from hf_fingerprint.cli import main as commands
from hf_fingerprint.errors import VaultError
from hf_fingerprint.hub.vaults import pull_vault, push_vault
from hf_fingerprint.vault import begin_training, copies_in_training, issuers, passphrase_age
from hf_fingerprint.vault.sealing import new_identity


OLD, NEW, TOKEN = "correct horse battery staple", "another passphrase", "hf_the-owner-of-org"
SETTINGS = Settings(coalition=3, recipients_planned=4, eps=0.003)
DISK, PAGE = 8 << 20, 4096
RECIPIENTS = 70  # enough for a trace to keep what it unsealed
SENTENCES = ("is full", "No space left", "make room")
ISSUER = new_identity()[1]


@dataclass(frozen=True)
class Place:
    """Where the runs take place: `small` is the disk that fills up, the other folders are on a roomy one."""

    small: Path
    model: Path
    leak: Path
    full_vault: Path
    bare_vault: Path
    old_vault: Path
    sibling: Path
    work: Path
    others: Path

    @property
    def vault(self) -> Path:
        """The vault in use."""
        return self.small / "vault"

    @property
    def training(self) -> str:
        """The id of the record of the training under way there."""
        return next(iter(copies_in_training(Vault(self.vault))))


@dataclass(frozen=True)
class Case:
    """A command: what lies on the disk before, its words, and what must hold once it is done."""

    before: Callable[[Place], object]
    arguments: str
    holds: Callable[[Place], bool]


def use(name: str) -> Callable[[Place], object]:
    """Puts a copy of one of the vaults on the disk."""
    return lambda place: shutil.copytree(getattr(place, name), place.vault)


def records(place: Place, recipient: str | None = None) -> list[str]:
    """The states of a recipient's records, or of all."""
    return [record.state for record in Vault(place.vault).copies(recipient=recipient)]


def opened(place: Place, passphrase: str = OLD) -> bool:
    """Whether the vault is whole, and all its records open."""
    vault = Vault(place.vault)
    with closing(sqlite3.connect(vault.folder / "vault.db")) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    vault.unlock(passphrase)
    return whole and all(vault.copy_key(record) for record in vault.copies())


def with_training(place: Place) -> None:
    """The vault with a training under way."""
    vault = Vault(shutil.copytree(place.full_vault, place.vault))
    begin_training(vault, vault.bases()[0], "emil")


def pushed_by_sibling(place: Place) -> None:
    """The vault, and a repo with another issuer's record in it."""
    shutil.copytree(place.full_vault, place.vault)
    sibling = Vault(place.sibling)
    sibling.unlock(OLD)
    push_vault(sibling, "org/keys")


def repo_is_whole(place: Place) -> bool:
    """Whether the repo has all that the vault has."""
    vault = Vault(place.vault)
    vault.unlock(OLD)
    pulled, _ = pull_vault("org/keys", place.others / "pulled", vault.opener())
    return {each.copy_id for each in pulled.copies()} == {each.copy_id for each in vault.copies()}


def original_is_kept(place: Place) -> bool:
    """Whether there is one original next to the upgraded vault, and it is of the format of then."""
    (kept,) = place.vault.glob("vault.db?format-1*")
    with closing(sqlite3.connect(f"{kept.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        return dict(connection.execute("SELECT key, value FROM meta"))["format"] == "1"


CASES = {
    "vault init": Case(
        lambda place: None,
        "vault init {0.vault}",
        lambda place: opened(place) and {path.name for path in place.vault.iterdir()} == {"vault.db", "identity.age"},
    ),
    "vault add": Case(
        use("bare_vault"),
        "vault add {0.model} --vault {0.vault} --eps 0.003 --coalition 3 --recipients-planned 4",
        lambda place: len(Vault(place.vault).bases()) == 1,
    ),
    "issue": Case(
        use("full_vault"),
        "issue {0.model} --recipient zoe --vault {0.vault} --out {0.others}/copy",
        lambda place: records(place, "zoe") == ["issued"] and opened(place) and (place.others / "copy").is_dir(),
    ),
    "issue to it": Case(
        lambda place: shutil.copytree(place.full_vault, place.others / "vault"),
        "issue {0.model} --recipient zoe --vault {0.others}/vault --out {0.small}/copy",
        lambda place: (
            (place.small / "copy" / "model.safetensors").is_file()
            and [each.state for each in Vault(place.others / "vault").copies(recipient="zoe")] == ["issued"]
        ),
    ),
    "vault push": Case(
        pushed_by_sibling,
        "vault push org/keys --vault {0.vault}",
        lambda place: len(records(place, "elsewhere")) == 1 and opened(place) and repo_is_whole(place),
    ),
    "vault pull": Case(
        pushed_by_sibling,
        "vault pull org/keys {0.small}/new --identity {0.sibling}/identity.age",
        lambda place: len(Vault(place.small / "new").copies()) == RECIPIENTS + 2,
    ),
    "vault merge": Case(
        use("full_vault"),
        "vault merge {0.sibling} --vault {0.vault}",
        lambda place: records(place, "elsewhere") == ["issued"] and len(records(place)) == RECIPIENTS + 2,
    ),
    "vault rotate": Case(
        use("full_vault"),
        "vault rotate --vault {0.vault} --new-passphrase-file {0.work}/new",
        lambda place: opened(place, NEW) and len(list(place.vault.glob("*identity*"))) == 2,
    ),
    "vault passphrase": Case(
        use("full_vault"),
        "vault passphrase --vault {0.vault} --new-passphrase-file {0.work}/new",
        lambda place: opened(place, NEW) and len(list(place.vault.glob("*identity*"))) == 1,
    ),
    "vault backup": Case(
        lambda place: None,
        "vault backup {0.small}/backup.db --vault {0.full_vault}",
        lambda place: [path.name for path in place.small.iterdir()] == ["backup.db"],
    ),
    "vault forget": Case(
        with_training,
        "vault forget {0.training} --vault {0.vault}",
        lambda place: not copies_in_training(Vault(place.vault)) and opened(place),
    ),
    "vault issuer add": Case(
        use("full_vault"),
        f"vault issuer add {ISSUER} --name ci --vault {{0.vault}}",
        lambda place: list(issuers(Vault(place.vault))) == [ISSUER],
    ),
    "trace": Case(use("full_vault"), "trace {0.leak} --vault {0.vault}", opened),
    "recipients": Case(use("full_vault"), "recipients --vault {0.vault}", opened),
    "upgrade": Case(
        use("old_vault"),
        "recipients --vault {0.vault}",
        lambda place: len(Vault(place.vault).bases()) == 1 and original_is_kept(place),
    ),
}


def run(arguments: list[str], said: Path) -> tuple[int, str]:
    """Runs a command in a child; its exit code and what it said."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            warnings.simplefilter("ignore")
            with said.open("w") as stream, redirect_stdout(stream), redirect_stderr(stream):
                code = commands.main(arguments)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


def trouble(case: Case, place: Place, free: int) -> str | None:
    """Runs a command with so many bytes free, makes room and runs it again. What is wrong; `None` if nothing is."""
    for path in place.small.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(place.others, ignore_errors=True)
    place.others.mkdir()
    case.before(place)
    arguments = [word.format(place) for word in case.arguments.split()]
    disk = os.statvfs(place.small)
    with (place.small / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(disk.f_bavail * disk.f_frsize - free, 1))
    code, said = run(arguments, place.work / "said")
    if code:
        if code != 2 or str(place.small) not in said or not any(each in said for each in SENTENCES):
            return f"ended with {code}: {said.strip()[-300:]}"
        if "backup" in said.replace("backup.db", ""):
            return f"asks for a backup: {said.strip()[-300:]}"
    (place.small / "ballast").unlink()
    if code:
        code, said = run(arguments, place.work / "said")
        if code:
            return f"stuck: {said.strip()[-300:]}"
    try:
        return None if case.holds(place) else "lost or doubled"
    except (VaultError, OSError, ValueError) as error:
        return f"lost: {error}"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 8 MB at a folder, for as long as it lasts.

    Raises:
        [`PermissionError`]: if this user may not mount one.
    """
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", folder]
    if subprocess.run(mounting, check=False, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError(f"{folder}: no right to mount a disk: run as root or under `unshare`.")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def build(work: Path, small: Path) -> Place:
    """The vaults, the model and the leak."""
    rng = np.random.default_rng(0)
    arrays = {f"blocks.{i}.attn.qkv.weight": rng.standard_normal((144, 48)).astype(np.float32) for i in range(8)}
    arrays["head.weight"] = rng.standard_normal((10, 48)).astype(np.float32)
    names = ("model", "leak", "full", "bare", "old", "sibling", "work", "others")
    place = Place(small, *(work / name for name in names))
    for folder in (place.model, place.old_vault, place.work):
        folder.mkdir()
    save_file(arrays, place.model / "model.safetensors")
    (place.work / "new").write_text(NEW + "\n")
    Vault.create(place.bare_vault, OLD)
    vault = Vault(shutil.copytree(place.bare_vault, place.full_vault))
    base = register(str(place.model), vault, SETTINGS)
    issue(str(place.model), "alice", vault, place.leak)
    for number in range(RECIPIENTS):
        record, key = vault.begin_copy(base, f"recipient {number}", f"/copies/{number}")
        vault.mark_written(record, key, f"{number:064x}", placed=True)
    sibling = Vault(shutil.copytree(place.full_vault, place.sibling))
    record, key = sibling.begin_copy(base, "elsewhere", "/copies/elsewhere")
    sibling.mark_written(record, key, "f0" * 32, placed=True)
    with closing(sqlite3.connect(place.old_vault / "vault.db")) as connection:
        connection.executescript(f"PRAGMA journal_mode = WAL; {FORMAT_1}")
        connection.execute("INSERT INTO meta VALUES ('public_key', ?)", (vault.public_key,))
        connection.commit()
    return place


def measure(sizes: int, names: list[str], most: int) -> Counter[tuple[str, str]]:
    """What came of each command at so many sizes up to `most` bytes free."""
    counts: Counter[tuple[str, str]] = Counter()
    with ExitStack() as stack:
        patches = stack.enter_context(MonkeyPatch.context())
        patches.setattr(passphrase_age, "LOG_WORK", 2)  # a passphrase costs no second
        patches.setenv("HF_FINGERPRINT_PASSPHRASE", OLD)
        patches.setattr(commands, "app", get_command(commands.app))  # put together once, not in each child
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vault-disks-")))
        small = stack.enter_context(small_disk(work / "small"))
        hub = stack.enter_context(LoopbackHub())
        hub.point_client(patches, work / "cache")
        hub.account("owner", orgs={"org"}, token=TOKEN)
        patches.setenv("HF_TOKEN", TOKEN)
        place = build(work, small)
        with redirect_stdout(StringIO()):  # imports once what the children need
            commands.main(["trace", str(place.leak), "--vault", str(place.sibling)])
        for name in names:
            for number in range(sizes):
                hub.of_kind("dataset").pop("org/keys", None)
                free = most * number // sizes // PAGE * PAGE
                found = trouble(CASES[name], place, free)
                counts[name, found or "right"] += 1
    return counts


def main() -> None:
    """Prints the counts; fails if anything was stuck, lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=100)
    parser.add_argument("--most", type=int, default=400 << 10, help="bytes that are free at most")
    parser.add_argument("--commands", nargs="*", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    counts = measure(arguments.sizes, arguments.commands, arguments.most)
    for (name, outcome), count in counts.items():
        print(f"{name}: {count} of {arguments.sizes} {outcome}")
    sys.exit(any(outcome != "right" for _, outcome in counts))


if __name__ == "__main__":
    main()
