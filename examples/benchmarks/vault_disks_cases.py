"""The vault commands that `vault_disks.py` runs, each with its preparation and its check."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from hf_fingerprint import Vault
from hf_fingerprint.hub.vault_repo import pull_vault, push_vault
from hf_fingerprint.vault import begin_training, copies_in_training, issuers, publications
from hf_fingerprint.vault.issuers import add_issuer, open_issuer_key
from hf_fingerprint.vault.sealing import new_identity
from tests.helpers.loopback_suspect import LoopbackSuspect


OLD, NEW = "correct horse battery staple", "another passphrase"
RECIPIENTS = 70  # enough for a trace to write a key cache
ISSUER = new_identity()[1]
COMMIT = "Add the model"


@dataclass(frozen=True)
class Place:
    """The folders of a run: `small` is the disk that fills up, the others are on a large one."""

    small: Path
    model: Path
    leak: Path
    full_vault: Path
    bare_vault: Path
    old_vault: Path
    sibling: Path
    work: Path
    others: Path
    blackbox: Path
    suspect: LoopbackSuspect

    @property
    def vault(self) -> Path:
        """The vault of the command."""
        return self.small / "vault"

    @property
    def training(self) -> str:
        """The id of the record of the training in progress."""
        return next(iter(copies_in_training(Vault(self.vault))))


@dataclass(frozen=True)
class Case:
    """A command to run.

    Attributes:
        before (callable): prepares the disk.
        arguments (`str`): the command line, with the folders of a [`Place`] to fill in.
        holds (callable): returns whether the command did its work.
        max_free (`int`, *optional*): the largest number of free bytes, if not that of the other commands.
        torch (`bool`): whether the command runs a model.
    """

    before: Callable[[Place], object]
    arguments: str
    holds: Callable[[Place], bool]
    max_free: int | None = None
    torch: bool = False


def use(name: str) -> Callable[[Place], object]:
    """Returns a preparation that copies one of the vaults to the disk."""
    return lambda place: shutil.copytree(getattr(place, name), place.vault)


def records(place: Place, recipient: str | None = None) -> list[str]:
    """Returns the states of a recipient's records, or of all."""
    return [record.state for record in Vault(place.vault).copies(recipient=recipient)]


def opened(place: Place, passphrase: str = OLD) -> bool:
    """Returns whether the vault is intact, and all its records open."""
    vault = Vault(place.vault)
    with closing(sqlite3.connect(vault.folder / "vault.db")) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    vault.unlock(passphrase)
    return whole and all(vault.copy_key(record) for record in vault.copies())


def with_training(place: Place) -> None:
    """Prepares the vault with a training in progress."""
    vault = Vault(shutil.copytree(place.full_vault, place.vault))
    begin_training(vault, vault.bases()[0], "emil")


def pushed_by_sibling(place: Place) -> None:
    """Prepares the vault, and a repo with another issuer's record."""
    shutil.copytree(place.full_vault, place.vault)
    sibling = Vault(place.sibling)
    sibling.unlock(OLD)
    push_vault(sibling, "org/keys")


def repo_is_whole(place: Place) -> bool:
    """Returns whether the repo has all records of the vault."""
    vault = Vault(place.vault)
    vault.unlock(OLD)
    pulled, _ = pull_vault("org/keys", place.others / "pulled", vault.age_identity())
    return {each.copy_id for each in pulled.copies()} == {each.copy_id for each in vault.copies()}


def original_is_kept(place: Place) -> bool:
    """Returns whether there is one original next to the upgraded vault, in the old format."""
    (kept,) = place.vault.glob("vault.db?format-1*")
    with closing(sqlite3.connect(f"{kept.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        return dict(connection.execute("SELECT key, value FROM meta"))["format"] == "1"


def elsewhere(place: Place) -> None:
    """Copies the vault to the large disk."""
    shutil.copytree(place.full_vault, place.others / "vault")


def with_issuer(place: Place) -> None:
    """Prepares the vault with an issuer."""
    add_issuer(Vault(shutil.copytree(place.full_vault, place.vault)), ISSUER, "ci")


def with_work_elsewhere(place: Place) -> None:
    """Prepares the vault, with outgoing copies on the large disk."""
    shutil.copytree(place.full_vault, place.vault)
    (place.small / "home").symlink_to(place.others)


def published(folder: Path, repo: str) -> bool:
    """Returns whether a vault has one confirmed publication to a repo, which has one commit of it."""
    (made,) = publications(Vault(folder), repo)
    commits = [commit for commit in HfApi().list_repo_commits(repo) if commit.title == COMMIT]
    return (made.state, [made.revision]) == ("confirmed", [commit.commit_id for commit in commits])


def work_is_gone(place: Place) -> bool:
    """Returns whether no outgoing copy is left."""
    return not any(path.is_file() for path in (place.small / "home").rglob("*"))


CASES = {
    "vault init": Case(
        lambda place: None,
        "vault init {0.vault}",
        lambda place: opened(place) and {path.name for path in place.vault.iterdir()} == {"vault.db", "identity.age"},
    ),
    "vault add": Case(
        use("bare_vault"),
        "vault add {0.model} --vault {0.vault} --amplitude 0.003 --coalition 3 --expected-recipients 4",
        lambda place: len(Vault(place.vault).bases()) == 1,
    ),
    "issue": Case(
        use("full_vault"),
        "issue {0.model} --recipient zoe --vault {0.vault} --out {0.others}/copies",
        lambda place: (
            records(place, "zoe") == ["issued"] and opened(place) and (place.others / "copies" / "zoe").is_dir()
        ),
    ),
    "issue to it": Case(
        elsewhere,
        "issue {0.model} --recipient zoe --vault {0.others}/vault --out {0.small}/copies",
        lambda place: (
            (place.small / "copies" / "zoe" / "model.safetensors").is_file()
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
    "vault issuer remove": Case(
        with_issuer,
        "vault issuer remove ci --vault {0.vault}",
        lambda place: not issuers(Vault(place.vault)) and opened(place),
    ),
    "vault issuer new": Case(
        lambda place: None,
        "vault issuer new {0.small}/key",
        lambda place: (
            [path.name for path in place.small.iterdir()] == ["key"]
            and open_issuer_key(place.small / "key") is not None
        ),
        max_free=64 << 10,
    ),
    "push": Case(
        use("full_vault"),
        "push {0.leak} org/zoe --vault {0.vault}",
        lambda place: published(place.vault, "org/zoe") and len(records(place)) == RECIPIENTS + 1 and opened(place),
        max_free=100 << 10,
    ),
    "push of what is written anew": Case(
        elsewhere,
        "push {0.blackbox}/noted org/zoe --vault {0.others}/vault",
        lambda place: published(place.others / "vault", "org/zoe") and work_is_gone(place),
    ),
    "issue --push-to": Case(
        with_work_elsewhere,
        "issue {0.model} --recipient zoe --push-to org/zoe --vault {0.vault}",
        lambda place: (
            published(place.vault, "org/zoe")
            and records(place, "zoe") == ["issued"]
            and opened(place)
            and work_is_gone(place)
        ),
        max_free=100 << 10,
    ),
    "issue --push-to, its work on the disk": Case(
        elsewhere,
        "issue {0.model} --recipient zoe --push-to org/zoe --vault {0.others}/vault",
        lambda place: (
            published(place.others / "vault", "org/zoe")
            and [each.state for each in Vault(place.others / "vault").copies(recipient="zoe")] == ["issued"]
            and work_is_gone(place)
        ),
    ),
    "trace": Case(use("full_vault"), "trace {0.leak} --vault {0.vault}", opened),
    "recipients": Case(use("full_vault"), "recipients --vault {0.vault}", opened),
    "upgrade": Case(
        use("old_vault"),
        "recipients --vault {0.vault}",
        lambda place: len(Vault(place.vault).bases()) == 1 and original_is_kept(place),
    ),
}
