"""The result of an issue."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import SkippedFile
from hf_fingerprint.tables import Block, PrintableResult, one_line_repr


@dataclass(frozen=True)
class IssuedCopy(PrintableResult):
    """A copy at its path.

    Attributes:
        recipient (`str`): the recipient's name.
        path (`Path`): the copy's folder.
        copy_id, base_id (`str`): its record in the vault, and the base it was made from.
        content_hash (`str`): the hash of its weights.
        commitment (`str`): see [`commitment`]; it may be published with the copy.
        coalition_certified (`int`): the largest coalition that the base's code withstands.
        left_out (`tuple[SkippedFile, ...]`): the files of the base that were not copied, with the reasons.
        new (`bool`): `False` if an earlier run issued it.
        digests (`dict[str, str]`): the SHA-256 of each weight file by its path in the folder, if requested.
    """

    recipient: str
    path: Path
    copy_id: str
    base_id: str
    content_hash: str
    commitment: str
    coalition_certified: int
    left_out: tuple[SkippedFile, ...]
    new: bool
    digests: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The copy as JSON types."""
        shown = {name: value for name, value in self.__dict__.items() if name != "digests"}
        return {**shown, "path": str(self.path), "left_out": [each.to_dict() for each in self.left_out]}

    def blocks(self) -> Iterator[Block]:
        """The line that shows the copy, and one for each file that was left out."""
        yield f"{self.recipient}: {self.path}" + ("" if self.new else " (issued before, complete)")
        for each in self.left_out:
            yield f"left out: {each.name} ({each.reason})"

    def __repr__(self) -> str:
        return one_line_repr(self, recipient=self.recipient, path=str(self.path), copy_id=self.copy_id, new=self.new)
