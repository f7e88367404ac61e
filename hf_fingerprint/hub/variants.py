"""What is said of a variant repo: whose copy it holds, at which commit."""

import csv
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import SkippedFile
from hf_fingerprint.checkpoints.limits import MAX_LIST, read_bounded
from hf_fingerprint.errors import FingerprintError


@dataclass(frozen=True)
class Assignment:
    """Whose copy goes where.

    Attributes:
        recipient (`str`): the recipient's name.
        repo (`str`): the variant repo, `org/name`.
        account (`str`, *optional*): the recipient's Hub account, to be given access.
    """

    recipient: str
    repo: str
    account: str | None = None


@dataclass(frozen=True)
class PublishedCopy:
    """A copy in its repo.

    Attributes:
        recipient (`str`): whose it is.
        repo (`str`): where it is.
        revision (`str`): the commit.
        copy_id (`str`): its record in the vault.
        base_id (`str`): the base it was made from.
        left_out (`tuple[LeftOut, ...]`): what of the model's folder was not handed on, each with its reason.
        new (`bool`): `False` if it had been published before.
    """

    recipient: str
    repo: str
    revision: str
    copy_id: str
    base_id: str
    left_out: tuple[SkippedFile, ...]
    new: bool

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "left_out": [each.to_dict() for each in self.left_out]}


def read_assignments(file: Path) -> list[Assignment]:
    """Whose copy goes where, from a CSV file with the columns `name`, `repo` and perhaps `account`.

    Raises:
        [`FingerprintError`]: if the file isn't such a table; it names the line.
    """
    try:
        content = read_bounded(file, MAX_LIST, "a list of recipients", FingerprintError, allow_pipe=True)
        table = csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""))
        if not {"name", "repo"} <= set(table.fieldnames or ()):
            raise FingerprintError(f"{file} has no columns name and repo: name them in its first line.")
        rows = [{key: (row.get(key) or "").strip() for key in ("name", "repo", "account")} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FingerprintError(f"{file} can't be read as CSV ({type(error).__name__}): save it as UTF-8.") from None
    for number, row in enumerate(rows, 1):
        if not row["name"] or not row["repo"]:
            raise FingerprintError(f"{file}: row {number} lacks a name or a repo: fill it in.")
    return [Assignment(row["name"], row["repo"], row["account"] or None) for row in rows]
