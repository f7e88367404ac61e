"""Which recipient's copy goes to which variant repo, and at which revision it is published."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import SkippedFile
from hf_fingerprint.checkpoints.limits import MAX_LIST, read_bounded
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr


@dataclass(frozen=True)
class Assignment:
    """A recipient and the variant repo of their copy.

    Attributes:
        recipient (`str`): the recipient's name.
        repo (`str`): the variant repo, `org/name`.
        account (`str`, *optional*): the recipient's Hub account, which is given access.
    """

    recipient: str
    repo: str
    account: str | None = None


@dataclass(frozen=True)
class PublishedCopy(PrintableResult):
    """A copy that is published in a variant repo.

    Attributes:
        recipient (`str`): the recipient's name.
        repo (`str`): the variant repo.
        revision (`str`): the commit.
        copy_id (`str`): the id of the copy's record in the vault.
        base_id (`str`): the id of the base.
        left_out (`tuple[SkippedFile, ...]`): files of the model's folder that are not in the copy, and why.
        new (`bool`): whether the copy was published by this call.
    """

    recipient: str
    repo: str
    revision: str
    copy_id: str
    base_id: str
    left_out: tuple[SkippedFile, ...]
    new: bool

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {**asdict(self), "left_out": [each.to_dict() for each in self.left_out]}

    def blocks(self) -> Iterator[Block]:
        """The line that shows the copy, and one for each file that was left out."""
        yield f"{self.recipient}: {self.repo}@{self.revision}" + ("" if self.new else " (published before)")
        for each in self.left_out:
            yield f"left out: {each.name} ({each.reason})"

    def __repr__(self) -> str:
        at = f"{self.repo}@{self.revision}"
        return one_line_repr(self, recipient=self.recipient, repo=at, copy_id=self.copy_id, new=self.new)


def read_assignments(file: Path) -> list[Assignment]:
    """Reads recipients and their repos from a CSV file with the columns `name`, `repo` and, optionally, `account`.

    Raises:
        [`FingerprintError`]: if the file is not such a table.
    """
    rows = _read_rows(file, ("name", "repo"))
    return [Assignment(row["name"], row["repo"], row["account"] or None) for row in rows]


def read_recipients(file: Path) -> list[str]:
    """Reads recipients from the column `name` of a CSV file. Raises a [`FingerprintError`] if there is none."""
    return [row["name"] for row in _read_rows(file, ("name",))]


def _read_rows(file: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, each with a name, a repo and an account, which are empty if not required."""
    columns = " or ".join(required)
    try:
        content = read_bounded(file, MAX_LIST, "a list of recipients", FingerprintError, allow_pipe=True)
        table = csv.DictReader(StringIO(content.decode("utf-8-sig"), newline=""))
        if not set(required) <= set(table.fieldnames or ()):
            raise FingerprintError(f"{file} lacks a column {columns}: add a header line.")
        rows = [{key: (row.get(key) or "").strip() for key in ("name", "repo", "account")} for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FingerprintError(f"{file} can't be read as CSV ({type(error).__name__}): save it as UTF-8.") from None
    for number, row in enumerate(rows, 1):
        if not all(row[column] for column in required):
            raise FingerprintError(f"{file}: row {number} lacks a {' or a '.join(required)}: fill it in.")
    return rows
