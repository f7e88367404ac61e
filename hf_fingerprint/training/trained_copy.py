"""What [`Fingerprint.record`] returns: the trained copy that it recorded."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_fingerprint.tables import Block, PrintableResult, one_line_repr


@dataclass(frozen=True)
class TrainedCopy(PrintableResult):
    """A trained copy that is recorded in the vault.

    Attributes:
        recipient (`str`): the recipient.
        path (`Path`): the copy's folder.
        copy_id (`str`): the id of its record in the vault.
        base_id (`str`): the id of its base.
        content_hash (`str`): the hash of its weights.
        commitment (`str` or `None`): see [`commitment`]. `None` for an issued copy that was trained further while the
            vault was locked: it keeps its record.
        score (`float`): the recipient's score, in standard deviations of an innocent's; a trace's may differ slightly.
        agreement (`float`): the share of positions with the recipient's bits.
        has_trigger_labels (`bool`): whether trigger labels were embedded. `False` if the base has no trigger set, or
            for an issued copy that was trained further.
    """

    recipient: str
    path: Path
    copy_id: str
    base_id: str
    content_hash: str
    commitment: str | None
    score: float
    agreement: float
    has_trigger_labels: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields as values for JSON."""
        return {**asdict(self), "path": str(self.path)}

    def blocks(self) -> Iterator[Block]:
        """The line that shows the copy."""
        labels = ", with trigger labels" * self.has_trigger_labels
        yield f"{self.recipient}: {self.path}, score {self.score:.1f}, {self.agreement:.1%} of the bits{labels}"

    def __repr__(self) -> str:
        return one_line_repr(
            self, recipient=self.recipient, path=str(self.path), copy_id=self.copy_id, score=round(self.score, 1)
        )
