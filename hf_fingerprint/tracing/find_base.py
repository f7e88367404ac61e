"""Finds the registered bases that a suspect may be made from, which are then read in full.

Several bases may share a backbone and differ in their head, norms, precision or fine-tuning. A sample of rows, which
sees no codeword, estimates how much of the suspect comes from each ([`estimate_shares`]). Those whose share may matter
are read in full, and the bound pays for each; the others are listed with the reason.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import NO_OPTIONS, HubOptions, TensorReader, open_checkpoint
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.registration.content import identify_base
from hf_fingerprint.tracing.base_mixture import BaseSelector
from hf_fingerprint.tracing.groups import BaseGroup, BaseSelection, open_base_files, records_with_hash
from hf_fingerprint.tracing.readability import fitting_carriers
from hf_fingerprint.vault import Base, Vault


if TYPE_CHECKING:
    import torch

_MIN_FIT = 0.5  # share of the fit of the best base


def find_bases(
    vault: Vault,
    bases: Sequence[Base],
    base_ref: ModelInput | None,
    suspect: TensorReader,
    stack: ExitStack,
    on_record: Sequence[str] = (),
    options: HubOptions = NO_OPTIONS,
    device: "str | torch.device | None" = None,
) -> BaseSelection:
    """Finds the bases that a suspect may be made from, and opens their files.

    Args:
        vault ([`Vault`]): the vault.
        bases (sequence of [`Base`]): its bases, at least one.
        base_ref (`str` or [`ModelInput`], *optional*): the base's id or the base, if the caller names it.
        suspect ([`TensorReader`]): the open suspect.
        stack ([`ExitStack`]): closes the bases' files.
        on_record (sequence of `str`, *optional*): ids of bases with a copy whose recorded hash is the suspect's.
        options ([`HubOptions`], *optional*): for their token and cache.
        device (`str` or `torch.device`, *optional*): see [`extract`].

    Raises:
        [`VaultError`]: if the files of a base that the suspect may be made from are missing.
    """
    if base_ref is not None:
        named = _named_base(bases, vault, base_ref, stack, options)
        named.reason = "named by the caller"
        found = BaseSelection([named])
        found.skip([base for base in bases if base not in named.records], "the caller named another base")
        return found
    records = {base.content_hash: records_with_hash(bases, base.content_hash) for base in bases}
    known: dict[object, float] = {}  # fine-tunes of one model have one layout and fit equally
    fits = {key: max(_fit_share(base, suspect, known) for base in group) for key, group in records.items()}
    found, likely_bases, least = BaseSelection(), [], _MIN_FIT * max(fits.values())
    for key, group in records.items():
        if (fits[key] and fits[key] >= least) or any(base.base_id in on_record for base in group):
            likely_bases.append(group)
        else:
            found.skip(group, "fewer of its tensors fit than of another base's" if fits[key] else "no tensor fits")
    if len(likely_bases) <= 1:
        found.groups = [BaseGroup(group, open_base_files(group, vault, stack, options)) for group in likely_bases]
        return found
    return BaseSelector(vault, suspect, stack, found, options, device).select(likely_bases, on_record)


def _fit_share(base: Base, suspect: TensorReader, known: dict[object, float]) -> float:
    """The share of a base's carriers that may have a counterpart in the suspect."""
    shapes = tuple((name, record.shape) for name, record in base.tensors.items())
    layout = shapes, tuple(carrier.name for carrier in base.carriers)
    if layout not in known:
        known[layout] = len(fitting_carriers(base, suspect)) / len(base.carriers)
    return known[layout]


def _named_base(
    bases: Sequence[Base], vault: Vault, base_ref: ModelInput, stack: ExitStack, options: HubOptions
) -> BaseGroup:
    """The base with this id, or with the weights of this model."""
    by_id = [base for base in bases if isinstance(base_ref, str | Path) and base.base_id == str(base_ref)]
    if by_id:
        records = records_with_hash(bases, by_id[0].content_hash)
        return BaseGroup(records, open_base_files(records, vault, stack, options))
    original = stack.enter_context(open_checkpoint(base_ref, weights_only=True, options=options.access))
    base, names = identify_base(original, bases, vault)
    is_renamed = any(name != theirs for name, theirs in names.items()) or len(names) < len(original.tensors)
    records = records_with_hash(bases, base.content_hash)
    return BaseGroup(records, RenamedCheckpoint(original, names) if is_renamed else original)
