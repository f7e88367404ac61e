"""Extracts the signal of a suspect with respect to a base: match, align, weigh, and add up to V numbers.

Alignment undoes permuted channels and rescaled rows. It depends on base and suspect alone, and is skipped if needless.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from hf_fingerprint.checkpoints import Checkpoint, TensorReader
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction.aligning import AlignedSuspect, match_and_align
from hf_fingerprint.extraction.extraction_sums import CarrierRows, Extraction, ExtractionSums
from hf_fingerprint.extraction.match import match_unmarked_names, similar_namesakes
from hf_fingerprint.extraction.placed import held_bounds, held_in
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch


def extract(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    progress: Progress | None = None,
    aligned: bool | Literal["always"] = True,
    device: "str | torch.device | None" = None,
    ancestor: TensorReader | None = None,
) -> Extraction:
    """Extracts the signal of a suspect with respect to a base.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): the base's open files.
        suspect ([`TensorReader`]): the open suspect.
        progress (callable, *optional*): a [`Progress`].
        aligned (`bool` or `"always"`, *optional*, defaults to `True`): whether to align permuted, rescaled or rotated
            weights with the base's. `True` tries tensors that aren't aligned already, `"always"` tries all.
        device (`str` or `torch.device`, *optional*): where the models run if that is needed to align the weights.
            Defaults to the CPU.
        ancestor ([`TensorReader`], *optional*): the public model that the base was fine-tuned from, open under the
            base's names.

    Raises:
        [`CheckpointError`]: if the base's files differ from those that were registered.
    """
    check_base_layout(base, original)
    found = match_and_align(base, original, suspect, aligned, progress, device)
    return extract_aligned(base, original, found, progress, ancestor)


def extract_aligned(
    base: Base,
    original: Checkpoint,
    found: AlignedSuspect,
    progress: Progress | None = None,
    ancestor: TensorReader | None = None,
) -> Extraction:
    """[`extract`] for a suspect that was aligned.

    Args:
        base, original, progress, ancestor: see [`extract`].
        found ([`AlignedSuspect`]): the suspect.
    """
    placed = found.placed
    same = similar_namesakes(original, placed.suspect, match_unmarked_names(base, original, placed.suspect))
    sums = ExtractionSums(base, original, found.suspect, ancestor)
    sums.add(whole_carriers(base, found), counting(progress, "extracting", base.carrier_weights))
    return replace(
        sums.extraction(found.matches),
        aligned=found.aligned,
        placed=placed.used,
        all_compared=placed.complete,
        held=frozenset(held_in(placed.suspect, [info.name for info in (*placed.matches.values(), *same.values())])),
        bounds=held_bounds(placed.suspect, placed.matches),
        interference=placed.interference,
    )


def whole_carriers(base: Base, found: AlignedSuspect) -> list[CarrierRows]:
    """All rows of each carrier that a suspect has, in the base's order."""
    matches, shares = found.matches, found.placed.shares
    return [
        CarrierRows(each, matches[each.name], slice(0, len(each.amplitude)), shares.get(each.name, 1.0))
        for each in base.carriers
        if each.name in matches
    ]


def check_base_layout(base: Base, original: Checkpoint) -> None:
    """Checks that the base's files have the registered carriers.

    Raises:
        [`CheckpointError`]: if one is missing or differs.
    """
    for carrier in base.carriers:
        info, record = original.tensors.get(carrier.name), base.tensors[carrier.name]
        if info is None or (info.dtype, info.shape) != (record.dtype, record.shape):
            raise CheckpointError(
                f"{original.source.name} is not base {base.base_id}: its tensor {carrier.name} is missing or differs. "
                f"Give the base's own files."
            )
