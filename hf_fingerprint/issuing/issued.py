"""What an issued copy is told as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints import SkippedFile


@dataclass(frozen=True)
class IssuedCopy:
    """A copy in its place.

    Attributes:
        recipient (`str`): whose it is.
        path (`Path`): its folder.
        copy_id (`str`): its record in the vault.
        base_id (`str`): the base it was made from.
        content_hash (`str`): the hash of its weights.
        commitment (`str`): see [`commitment`]; may be published with the copy.
        coalition_certified (`int`): the coalition size that the base's code withstands.
        left_out (`tuple[LeftOut, ...]`): what of the source was not handed on, each with its reason.
        new (`bool`): `False` if it had been issued before and was found whole.
        digests (`dict[str, str]`): the SHA-256 of each weight file, by its path in the folder, if it was asked for.
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
        """The same for JSON."""
        shown = {name: value for name, value in self.__dict__.items() if name != "digests"}
        return {**shown, "path": str(self.path), "left_out": [each.to_dict() for each in self.left_out]}


CopyCallback = Callable[[IssuedCopy], None]


@dataclass(frozen=True)
class PreparedCopy:
    """A copy that is made but not in its place: call one of the two.

    Attributes:
        finish (callable): puts it there, durably. What it is given is called meanwhile with the copy as it will be
            told, but for its path, which is where it is at that time; the copy gets to its place even if that fails.
        drop (callable): forgets it; its record stays begun, and the next attempt goes on with it.
    """

    finish: Callable[[CopyCallback], IssuedCopy]
    drop: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, copy: IssuedCopy) -> "PreparedCopy":
        """One that is in its place already."""

        def finish(on_written: CopyCallback) -> IssuedCopy:
            on_written(copy)
            return copy

        return cls(finish)
