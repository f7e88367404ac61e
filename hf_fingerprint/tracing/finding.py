"""Which registered bases a suspect is read against: those that may have a share in it.

Two bases may have one backbone: another head, other norms, half precision, a fine-tuning of their own. A cheap look
at sampled rows, which sees no codeword, tells how much of the suspect comes from each ([`shares_of`]); those that may
have a share that matters are read in full, and each pays for it in the bound. The others are listed with the reason.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hf_fingerprint.checkpoints import Checkpoint, RangedCheckpoint, TensorInfo, Weights, open_checkpoint
from hf_fingerprint.checkpoints.names import normalise
from hf_fingerprint.errors import VaultError
from hf_fingerprint.reading import (
    DESCENDS,
    Sampled,
    cosine,
    in_names_of,
    match_names,
    match_tensors,
    names_tell,
    plan_looks,
    put_in_order,
    sample,
    sample_rows,
    shapes_in_common,
    shares_of,
)
from hf_fingerprint.registration import open_base, weights_hash
from hf_fingerprint.tracing.readability import hidden_in
from hf_fingerprint.tracing.result import NotRead
from hf_fingerprint.vault import Base, Vault


CLEARLY = 0.9
ROWS, COLUMNS = 8, 512  # of each carrier, for the look that tells bases apart
_LEAST_FIT = 0.5  # of the best one's carriers that have a counterpart
_ONE_FAMILY = 0.9  # cosine: fine-tunes of one model, whose channels stand in one order


@dataclass
class Group:
    """The records of one base, and its open files: two issuers may have registered one model apart.

    Attributes:
        records (`list[Base]`): at least one.
        original ([`Checkpoint`]): the base's files.
        why (`str`): what the base has to do with the suspect.
    """

    records: list[Base]
    original: Checkpoint
    why: str = "the only base that it may come from"


@dataclass
class Found:
    """The bases that a suspect is read against.

    Attributes:
        groups (`list[Group]`): those to read, the likeliest first; none if nothing of the suspect fits any.
        not_read (`list[NotRead]`): the others, and why.
        gone (`list[NotRead]`): those whose files are not to be had, though they may fit.
    """

    groups: list[Group] = field(default_factory=list)
    not_read: list[NotRead] = field(default_factory=list)
    gone: list[NotRead] = field(default_factory=list)

    def leave(self, records: Sequence[Base], reason: str) -> None:
        """Lists a base as not read."""
        self.not_read.extend(NotRead(base.base_id, base.source, reason) for base in records)


def find_bases(
    vault: Vault, place: str | Path | None, suspect: Weights, held: ExitStack, on_record: Sequence[str] = ()
) -> Found:
    """The bases that a suspect is read against.

    Args:
        vault ([`Vault`]): the vault.
        place (`str` or `Path`, *optional*): the base's id or place, if the caller names one.
        suspect ([`Weights`]): the open suspect.
        held ([`ExitStack`]): closes the bases' files.
        on_record (sequence of `str`, *optional*): ids of bases that the suspect's content hash is on record for.

    Raises:
        [`VaultError`]: if there is no base, or the files of one are gone that may be the one.
    """
    bases = vault.bases()
    if not bases:
        raise VaultError(f"{vault.folder} holds no base: nothing was issued from it, so nobody can be traced.")
    if place is not None:
        group = _named_base(bases, vault, place, held)
        found = Found([group])
        group.why = "named by whoever traces"
        for other in bases:
            if other not in group.records:
                found.leave([other], "another base was named by whoever traces")
        return found
    fits = [_fit(base, suspect) for base in bases]
    found = Found()
    least = _LEAST_FIT * max(fits)
    likely: list[list[Base]] = []
    for base, fit in zip(bases, fits, strict=True):
        if base.base_id in on_record or (fit and fit >= least):
            if not any(base in records for records in likely):
                likely.append(_records(bases, base.content_hash))
        elif not any(other.content_hash == base.content_hash for records in likely for other in records):
            found.leave([base], "no tensor fits" if not fit else "fewer of its tensors fit than of another base's")
    if len(likely) <= 1:
        found.groups = [Group(records, _open_records(records, vault, held)) for records in likely]
        return found
    return _Comparison(vault, suspect, held, found).choose(likely, on_record)


def _fit(base: Base, suspect: Weights) -> float:
    """The share of a base's carriers that have a counterpart in the suspect, by name and shape, by shape alone, or by
    size; from the headers."""
    matches = match_names(base, in_names_of(base, suspect))
    count = max(len(matches), shapes_in_common(base, suspect))
    if not count:
        missing = [carrier.name for carrier in base.carriers]
        count = len(hidden_in(base, suspect, missing, getattr(suspect, "left_out", None)))
    return count / len(base.carriers)


class _Comparison:
    """Several bases, a suspect, and samples of them all."""

    def __init__(self, vault: Vault, suspect: Weights, held: ExitStack, found: Found):
        self._vault, self._suspect, self._held, self._found = vault, suspect, held, found
        self._groups: list[Group] = []
        self._matches: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[str, TensorInfo]] = {}
        self._fetched: dict[str, list[int]] | None = None

    def choose(self, likely: Sequence[list[Base]], on_record: Sequence[str]) -> Found:
        """Those of several bases that may have a share in the suspect."""
        groups, errors = self._groups, []
        for records in likely:
            try:
                groups.append(Group(records, _open_records(records, self._vault, self._held)))
            except VaultError as error:
                errors.append(error)
                self._found.gone.extend(NotRead(base.base_id, base.source, str(error)) for base in records)
        if not groups:
            raise errors[0]
        samples = [self._sampled(group, self._suspect) for group in groups]
        likeness = [cosine(ours, theirs) for ours, theirs in samples]
        if max(likeness) < DESCENDS and not isinstance(self._suspect, RangedCheckpoint):
            samples = self._in_order(groups, samples)
            likeness = [cosine(ours, theirs) for ours, theirs in samples]
        if errors and max(likeness) < CLEARLY:
            raise errors[0]
        if max(likeness) < DESCENDS:
            return self._nearest(groups, likeness)
        return self._with_share(groups, samples, likeness, on_record)

    def _nearest(self, groups: list[Group], likeness: list[float]) -> Found:
        """The nearest of bases that are all unlike the suspect."""
        best = likeness.index(max(likeness))
        for i, group in enumerate(groups):
            if i == best:
                group.why = f"the nearest, though unlike it (cosine {likeness[i]:.3f})"
                self._found.groups.append(group)
            else:
                self._found.leave(group.records, f"unlike the suspect (cosine {likeness[i]:.3f})")
        return self._found

    def _with_share(
        self,
        groups: list[Group],
        samples: list[tuple[Sampled, Sampled]],
        likeness: list[float],
        on_record: Sequence[str],
    ) -> Found:
        alike = [i for i in range(len(groups)) if likeness[i] >= DESCENDS]
        common = set.intersection(*(set(samples[i][0]) for i in alike))
        theirs = {name: samples[alike[0]][1][name] for name in sorted(common)}
        if common:
            shares = shares_of(theirs, [{name: samples[i][0][name] for name in theirs} for i in alike])
            share, error, needed = shares.share, shares.error, shares.needed
            order = sorted(range(len(alike)), key=lambda n: -share[n])
        read: list[int] = []
        for n in order if common else range(len(alike)):
            group = groups[alike[n]]
            if not common:
                group.why = f"cosine {likeness[alike[n]]:.3f}"
                read.append(alike[n])
                continue
            told = f"a share of {share[n]:.2f} +- {error[n]:.2f} in the suspect"
            if needed[n] or not read:
                group.why = told
                read.append(alike[n])
            else:
                self._found.leave(group.records, f"{told}: too little to tell its copies")
        for i, group in enumerate(groups):
            if i not in alike:
                self._found.leave(group.records, f"unlike the suspect (cosine {likeness[i]:.3f})")
        self._found.groups = [groups[i] for i in read]
        self._add([*on_record, *_copied(self._found.groups)], groups)
        return self._found

    def _add(self, wanted: Sequence[str], groups: list[Group]) -> None:
        """Reads also what must be read with others: the base that one is a copy of, and what is on record."""
        waiting = list(wanted)
        while waiting:
            base_id = waiting.pop()
            for group in groups:
                ids = {base.base_id for base in group.records}
                if base_id in ids and group not in self._found.groups:
                    group.why = "a base that was read is a copy of it, or the suspect's hash is on record for it"
                    self._found.groups.append(group)
                    self._found.not_read = [each for each in self._found.not_read if each.name not in ids]
                    waiting += _copied([group])

    def _in_order(self, groups: list[Group], samples: list[tuple[Sampled, Sampled]]) -> list[tuple[Sampled, Sampled]]:
        """Samples of the suspect put in the order of each base; fine-tunes of one model have one order."""
        found: list[tuple[Sampled, Sampled] | None] = [None] * len(groups)
        for i, group in enumerate(groups):
            if found[i] is not None:
                continue
            ordered, matches, _ = put_in_order(group.records[0], group.original, self._suspect)
            for j in range(i, len(groups)):
                if found[j] is None and (i == j or cosine(samples[i][0], samples[j][0]) >= _ONE_FAMILY):
                    found[j] = self._sampled(groups[j], ordered, matches)
        return [each for each in found if each is not None]

    def _sampled(
        self, group: Group, suspect: Weights, matches: dict[str, TensorInfo] | None = None
    ) -> tuple[Sampled, Sampled]:
        """The same rows of a base and of the suspect, by normalised name."""
        base = group.records[0]
        suspect = in_names_of(base, suspect) if matches is None else suspect
        matches = self._matched(group, suspect) if matches is None else matches
        rows = self._rows(group, matches)
        own = {name: group.original.tensors[name] for name in rows}
        ours = sample(group.original, own, rows, COLUMNS)
        theirs = sample(suspect, matches, rows, COLUMNS)
        return {normalise(n): v for n, v in ours.items()}, {normalise(n): v for n, v in theirs.items()}

    def _matched(self, group: Group, suspect: Weights) -> dict[str, TensorInfo]:
        """The carriers' counterparts: by names where these tell, else by likeness, which is costly and so done once
        for bases that are alike."""
        base = group.records[0]
        if isinstance(suspect, RangedCheckpoint) or names_tell(base, suspect):
            return match_names(base, suspect)
        layout = tuple((carrier.name, base.tensors[carrier.name].shape) for carrier in base.carriers)
        if layout not in self._matches:
            self._matches[layout] = match_tensors(base, group.original, suspect)
        return self._matches[layout]

    def _rows(self, group: Group, matches: dict[str, TensorInfo]) -> dict[str, Sequence[int]]:
        """Which rows of each carrier are compared: the same ones in all bases."""
        own = group.original.tensors
        fitting = [name for name, info in matches.items() if name in own and own[name].shape == info.shape]
        if not isinstance(self._suspect, RangedCheckpoint):
            return {name: sample_rows(own[name].rows, ROWS) for name in fitting}
        fetched = self._first_rows(self._suspect)
        return {name: fetched[normalise(name)] for name in fitting if normalise(name) in fetched}

    def _first_rows(self, suspect: RangedCheckpoint) -> dict[str, list[int]]:
        """Rows within what the first look at a suspect on the Hub reads, which is fetched and stays at hand."""
        if self._fetched is None:
            bases = [group.records[0] for group in self._groups]
            matches = {name: info for base in bases for name, info in match_names(base, suspect).items()}
            self._fetched = {}
            wanted, left = [], math.inf if suspect.max_bytes is None else suspect.max_bytes - suspect.bytes_fetched
            for piece in plan_looks(bases, matches)[0]:
                if piece.name not in matches or (piece.stop - piece.start) * matches[piece.name].row_bytes > left:
                    continue
                info, chosen = matches[piece.name], sample_rows(piece.stop - piece.start, ROWS)
                left -= (piece.stop - piece.start) * info.row_bytes
                wanted.append((info, piece.start * info.row_bytes, piece.stop * info.row_bytes))
                self._fetched.setdefault(normalise(piece.name), []).extend(piece.start + row for row in chosen)
            suspect.fetch(wanted)
        return self._fetched


def _copied(groups: Sequence[Group]) -> Iterator[str]:
    """The bases that those of some groups are copies of."""
    for base in (base for group in groups for base in group.records):
        if base.copy_of is not None:
            yield base.copy_of


def _records(bases: Sequence[Base], content_hash: str) -> list[Base]:
    return [base for base in bases if base.content_hash == content_hash]


def _open_records(records: list[Base], vault: Vault, held: ExitStack) -> Checkpoint:
    """The files of a base, from the first of the places it was registered from that still has them."""
    gone: list[VaultError] = []
    for base in records:
        try:
            return held.enter_context(open_base(base, vault))
        except VaultError as error:
            gone.append(error)
    raise gone[0]


def _named_base(bases: Sequence[Base], vault: Vault, place: str | Path, held: ExitStack) -> Group:
    """The base with this id, or whose weights are at this place."""
    named = [base for base in bases if base.base_id == str(place)]
    if named:
        records = _records(bases, named[0].content_hash)
        return Group(records, _open_records(records, vault, held))
    original = held.enter_context(open_checkpoint(place, weights_only=True))
    records = _records(bases, weights_hash(original, vault))
    if not records:
        raise VaultError(
            f"{place} is not a base of {vault.folder}: its weights' hash is not on record; give the base itself."
        )
    return Group(records, original)
