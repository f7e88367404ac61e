"""Which registered bases a suspect is read against: those that may have a share in it.

Two bases may have one backbone: another head, other norms, half precision, a fine-tuning of their own. A cheap look
at sampled rows, which sees no codeword, tells how much of the suspect comes from each ([`estimate_shares`]); those that may
have a share that matters are read in full, and each pays for it in the bound. The others are listed with the reason.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hf_fingerprint.checkpoints import TensorReader, open_checkpoint
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import weights_hash
from hf_fingerprint.tracing.base_mixture import BaseSelector
from hf_fingerprint.tracing.groups import BaseGroup, BaseSelection, open_base_files, records_with_hash
from hf_fingerprint.tracing.readability import fitting_carriers
from hf_fingerprint.vault import Base, Vault


_MIN_FIT = 0.5  # of the best one's carriers that have a counterpart


def find_bases(
    vault: Vault,
    bases: Sequence[Base],
    base_ref: str | Path | None,
    suspect: TensorReader,
    stack: ExitStack,
    on_record: Sequence[str] = (),
) -> BaseSelection:
    """The bases that a suspect is read against.

    Args:
        vault ([`Vault`]): the vault.
        bases (sequence of [`Base`]): its bases, one at least.
        base_ref (`str` or `Path`, *optional*): the base's id or place, if the caller names one.
        suspect ([`TensorReader`]): the open suspect.
        stack ([`ExitStack`]): closes the bases' files.
        on_record (sequence of `str`, *optional*): ids of bases that the suspect's content hash is on record for.

    Raises:
        [`VaultError`]: if the files of one are gone that may be the one.
    """
    if base_ref is not None:
        named = _named_base(bases, vault, base_ref, stack)
        named.reason = "named by whoever traces"
        found = BaseSelection([named])
        found.skip([base for base in bases if base not in named.records], "another base was named by whoever traces")
        return found
    records = {base.content_hash: records_with_hash(bases, base.content_hash) for base in bases}
    known: dict[object, float] = {}  # fine-tunes of one model are laid out alike, and fit alike
    fits = {key: max(_fit_share(base, suspect, known) for base in group) for key, group in records.items()}
    found, likely_bases, least = BaseSelection(), [], _MIN_FIT * max(fits.values())
    for key, group in records.items():
        if (fits[key] and fits[key] >= least) or any(base.base_id in on_record for base in group):
            likely_bases.append(group)
        else:
            found.skip(group, "fewer of its tensors fit than of another base's" if fits[key] else "no tensor fits")
    if len(likely_bases) <= 1:
        found.groups = [BaseGroup(group, open_base_files(group, vault, stack)) for group in likely_bases]
        return found
    return BaseSelector(vault, suspect, stack, found).select(likely_bases, on_record)


def _fit_share(base: Base, suspect: TensorReader, known: dict[object, float]) -> float:
    """The share of a base's carriers that may have a counterpart in the suspect."""
    shapes = tuple((name, record.shape) for name, record in base.tensors.items())
    layout = shapes, tuple(carrier.name for carrier in base.carriers)
    if layout not in known:
        known[layout] = len(fitting_carriers(base, suspect)) / len(base.carriers)
    return known[layout]


def _named_base(bases: Sequence[Base], vault: Vault, base_ref: str | Path, stack: ExitStack) -> BaseGroup:
    """The base with this id, or whose weights are at this place."""
    named = [base for base in bases if base.base_id == str(base_ref)]
    if named:
        records = records_with_hash(bases, named[0].content_hash)
        return BaseGroup(records, open_base_files(records, vault, stack))
    original = stack.enter_context(open_checkpoint(base_ref, weights_only=True))
    records = records_with_hash(bases, weights_hash(original, vault))
    if not records:
        raise VaultError(
            f"{base_ref} is not a base of {vault.folder}: its weights' hash is not on record; give the base itself."
        )
    return BaseGroup(records, original)
