"""Which registered base a suspect is read against: the one its weights are most like, put in order if need be."""

from collections.abc import Sequence
from pathlib import Path

from hf_fingerprint.checkpoints import Checkpoint, RangedCheckpoint, Weights, open_checkpoint
from hf_fingerprint.errors import VaultError
from hf_fingerprint.reading import (
    DESCENDS,
    Looks,
    match_names,
    put_in_order,
    sample_cosine,
    shapes_in_common,
)
from hf_fingerprint.registration import open_base, weights_hash
from hf_fingerprint.vault import Base, Vault


CLEARLY = 0.9
_TIE = 0.05
Records = list[Base]  # of the same weights: two issuers may have registered one model apart


def find_base(vault: Vault, place: str | Path | None, suspect: Weights) -> tuple[Records, Checkpoint]:
    """All records of the base that the suspect is read against, and its open files."""
    bases = vault.bases()
    if not bases:
        raise VaultError(f"{vault.folder} holds no base: nothing was issued from it, so nobody can be traced.")
    if place is not None:
        return _named_base(bases, vault, place)
    by_shape = not isinstance(suspect, RangedCheckpoint)  # of which names are all there is to go by
    shares = [
        max(len(match_names(base, suspect)), by_shape * shapes_in_common(base, suspect)) / len(base.carriers)
        for base in bases
    ]
    likely = [base for base, share in zip(bases, shares, strict=True) if share >= max(shares) - _TIE]
    groups = [_records(bases, base.content_hash) for base in likely]
    groups = [group for i, group in enumerate(groups) if group not in groups[:i]]
    if len(groups) == 1:
        return groups[0], _open_records(groups[0], vault)
    return _closest(groups, vault, suspect)


def _records(bases: Sequence[Base], content_hash: str) -> Records:
    return [base for base in bases if base.content_hash == content_hash]


def _open_records(records: Records, vault: Vault) -> Checkpoint:
    """The files of a base, from the first of the places it was registered from that still has them."""
    gone: list[VaultError] = []
    for base in records:
        try:
            return open_base(base, vault)
        except VaultError as error:
            gone.append(error)
    raise gone[0]


def _named_base(bases: Sequence[Base], vault: Vault, place: str | Path) -> tuple[Records, Checkpoint]:
    """The base with this id, or whose weights are at this place."""
    named = [base for base in bases if base.base_id == str(place)]
    if named:
        records = _records(bases, named[0].content_hash)
        return records, _open_records(records, vault)
    original = open_checkpoint(place, weights_only=True)
    records = _records(bases, weights_hash(original, vault))
    if not records:
        original.close()
        raise VaultError(
            f"{place} is not a base of {vault.folder}: its weights' hash is not on record; give the base itself."
        )
    return records, original


def _closest(groups: Sequence[Records], vault: Vault, suspect: Weights) -> tuple[Records, Checkpoint]:
    """Of several bases of one architecture, the one whose weights the suspect's are most like.

    One whose files are gone can't be compared; that is an error unless another is clearly the one.
    """
    likeness, gone = _all_likeness(groups, vault, suspect)
    if max(likeness) < DESCENDS and not isinstance(suspect, RangedCheckpoint):
        likeness, gone = _all_likeness(groups, vault, suspect, aligned=True)
    if gone and max(likeness) < CLEARLY:
        raise gone[0]
    best = groups[likeness.index(max(likeness))]
    return best, _open_records(best, vault)


def _all_likeness(
    groups: Sequence[Records], vault: Vault, suspect: Weights, aligned: bool = False
) -> tuple[list[float], list[VaultError]]:
    """The likeness of each base, -2 for those whose files are gone, and what is said of these."""
    likeness: list[float] = []
    gone: list[VaultError] = []
    for group in groups:
        try:
            with _open_records(group, vault) as original:
                likeness.append(_likeness(group[0], original, suspect, aligned))
        except VaultError as error:
            likeness.append(-2.0)
            gone.append(error)
    return likeness, gone


def _likeness(base: Base, original: Checkpoint, suspect: Weights, aligned: bool) -> float:
    """The cosine of the suspect's weights and a base's; of one on the Hub, at the first look, which stays at hand."""
    if isinstance(suspect, RangedCheckpoint):
        return next(Looks([base], original, suspect).readings(keep=True))[0].lineage.cosine
    suspect, matches, _ = put_in_order(base, original, suspect, aligned)
    return sample_cosine(base, original, matches, suspect)
