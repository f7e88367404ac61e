"""Presents a suspect under the base's names and in the base's order, where permuted, rescaled and rotated weights are
aligned with the base's."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.extraction.alignment import align_suspect
from hf_fingerprint.extraction.placing import PlacedSuspect, place_tensors
from hf_fingerprint.progress import Progress
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch


class AlignedSuspect(NamedTuple):
    """A suspect under the base's names and in the base's order.

    Attributes:
        suspect ([`TensorReader`]): the suspect so.
        matches (`dict[str, TensorInfo]`): its tensors by the carriers' names.
        aligned (`int`): how many carriers were aligned.
        placed ([`PlacedSuspect`]): the suspect before alignment.
    """

    suspect: TensorReader
    matches: dict[str, TensorInfo]
    aligned: int
    placed: PlacedSuspect

    @classmethod
    def as_placed(cls, placed: PlacedSuspect) -> "AlignedSuspect":
        """A suspect that is left in its own order."""
        return cls(placed.suspect, placed.matches, 0, placed)


def match_and_align(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    aligned: bool | Literal["always"] = True,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
) -> AlignedSuspect:
    """Places a suspect's tensors onto the base's carriers, and aligns them.

    Args:
        base, original, suspect, aligned, progress, device: see [`extract`].
    """
    placed = place_tensors(base, original, suspect)
    own, matches, alignment = placed.suspect, placed.matches, None
    if aligned:
        alignment = align_suspect(base, original, own, matches, progress, aligned == "always", device)
    if alignment is None:
        return AlignedSuspect.as_placed(placed)
    found = alignment.aligned_tensors
    return AlignedSuspect(alignment, matches | found, len(found), placed)
