"""Presents a suspect under the base's names and in the base's order, where permuted, rescaled and rotated weights are
aligned with the base's."""

from typing import TYPE_CHECKING, Literal

from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.extraction.alignment import align_suspect
from hf_fingerprint.extraction.placing import PlacedSuspect, place_tensors
from hf_fingerprint.progress import Progress
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch


def match_and_align(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    aligned: bool | Literal["always"] = True,
    progress: Progress | None = None,
    device: "str | torch.device | None" = None,
) -> tuple[TensorReader, dict[str, TensorInfo], int]:
    """The suspect under the base's names and in the base's order.

    Args:
        base, original, suspect, aligned, progress, device: see [`extract`].

    Returns:
        `(suspect, matches, aligned_tensors)`: the aligned suspect, the carriers' counterparts, how many were aligned.
    """
    return align_placed(base, original, place_tensors(base, original, suspect), aligned, progress, device)


def align_placed(
    base: Base,
    original: Checkpoint,
    placed: PlacedSuspect,
    aligned: bool | Literal["always"],
    progress: Progress | None,
    device: "str | torch.device | None",
) -> tuple[TensorReader, dict[str, TensorInfo], int]:
    """[`match_and_align`] for a suspect whose tensors were placed."""
    suspect, matches = placed.suspect, placed.matches
    alignment = None
    if aligned:
        alignment = align_suspect(base, original, suspect, matches, progress, aligned == "always", device)
    if alignment is None:
        return suspect, matches, 0
    return alignment, matches | alignment.aligned_tensors, len(alignment.aligned_tensors)
