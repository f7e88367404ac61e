"""Which registered bases a suspect is read against: those that may have a share in it.

Two bases may have one backbone: another head, other norms, half precision, a fine-tuning of their own. A cheap look
at sampled rows, which sees no codeword, tells how much of the suspect comes from each ([`shares_of`]); those that may
have a share that matters are read in full, and each pays for it in the bound. The others are listed with the reason.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hf_fingerprint.checkpoints import Weights, open_checkpoint
from hf_fingerprint.errors import VaultError
from hf_fingerprint.registration import weights_hash
from hf_fingerprint.tracing.base_mixture import Comparison
from hf_fingerprint.tracing.groups import Found, Group, open_records, records_of
from hf_fingerprint.tracing.readability import fitting
from hf_fingerprint.vault import Base, Vault


_LEAST_FIT = 0.5  # of the best one's carriers that have a counterpart


def find_bases(
    vault: Vault,
    bases: Sequence[Base],
    place: str | Path | None,
    suspect: Weights,
    held: ExitStack,
    on_record: Sequence[str] = (),
) -> Found:
    """The bases that a suspect is read against.

    Args:
        vault ([`Vault`]): the vault.
        bases (sequence of [`Base`]): its bases, one at least.
        place (`str` or `Path`, *optional*): the base's id or place, if the caller names one.
        suspect ([`Weights`]): the open suspect.
        held ([`ExitStack`]): closes the bases' files.
        on_record (sequence of `str`, *optional*): ids of bases that the suspect's content hash is on record for.

    Raises:
        [`VaultError`]: if the files of one are gone that may be the one.
    """
    if place is not None:
        named = _named_base(bases, vault, place, held)
        named.why = "named by whoever traces"
        found = Found([named])
        found.leave([base for base in bases if base not in named.records], "another base was named by whoever traces")
        return found
    records = {base.content_hash: records_of(bases, base.content_hash) for base in bases}
    known: dict[object, float] = {}  # fine-tunes of one model are laid out alike, and fit alike
    fits = {key: max(_fit(base, suspect, known) for base in group) for key, group in records.items()}
    found, likely, least = Found(), [], _LEAST_FIT * max(fits.values())
    for key, group in records.items():
        if (fits[key] and fits[key] >= least) or any(base.base_id in on_record for base in group):
            likely.append(group)
        else:
            found.leave(group, "fewer of its tensors fit than of another base's" if fits[key] else "no tensor fits")
    if len(likely) <= 1:
        found.groups = [Group(group, open_records(group, vault, held)) for group in likely]
        return found
    return Comparison(vault, suspect, held, found).choose(likely, on_record)


def _fit(base: Base, suspect: Weights, known: dict[object, float]) -> float:
    """The share of a base's carriers that may have a counterpart in the suspect."""
    shapes = tuple((name, record.shape) for name, record in base.tensors.items())
    layout = shapes, tuple(carrier.name for carrier in base.carriers)
    if layout not in known:
        known[layout] = len(fitting(base, suspect)) / len(base.carriers)
    return known[layout]


def _named_base(bases: Sequence[Base], vault: Vault, place: str | Path, held: ExitStack) -> Group:
    """The base with this id, or whose weights are at this place."""
    named = [base for base in bases if base.base_id == str(place)]
    if named:
        records = records_of(bases, named[0].content_hash)
        return Group(records, open_records(records, vault, held))
    original = held.enter_context(open_checkpoint(place, weights_only=True))
    records = records_of(bases, weights_hash(original, vault))
    if not records:
        raise VaultError(
            f"{place} is not a base of {vault.folder}: its weights' hash is not on record; give the base itself."
        )
    return Group(records, original)
