"""Several bases that a suspect may come from, compared with it by sampled rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from hf_fingerprint.checkpoints import RangedCheckpoint, TensorInfo, Weights
from hf_fingerprint.checkpoints.tensor_names import normalise
from hf_fingerprint.errors import VaultError
from hf_fingerprint.extraction import (
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
    shares_of,
)
from hf_fingerprint.keys import derive
from hf_fingerprint.tracing.groups import Found, Group, open_records
from hf_fingerprint.tracing.result import NotRead
from hf_fingerprint.vault import Base, Vault


CLEARLY = 0.9
NOTHING_COMPARED = -1.0  # the cosine of nothing in common
CARRIERS, ROWS, COLUMNS = 16, 4, 512  # that are sampled: so many carriers, rows of each, weights of each row
_Layout = tuple[tuple[str, tuple[int, ...]], ...]
_ONE_FAMILY = 0.9  # cosine: fine-tunes of one model, whose channels stand in one order


class Comparison:
    """Several bases, a suspect, and samples of them all."""

    def __init__(self, vault: Vault, suspect: Weights, held: ExitStack, found: Found):
        self._vault, self._suspect, self._held, self._found = vault, suspect, held, found
        self._groups: list[Group] = []
        self._matched: dict[_Layout, tuple[Weights, dict[str, TensorInfo]]] = {}
        self._theirs: dict[_Layout, Sampled] = {}
        self._rows_of: dict[tuple[str, int, int], list[int]] = {}
        self._places: dict[str, float] = {}
        self._seed, self._most = 0, CARRIERS
        self._fetched: dict[str, list[int]] | None = None

    def choose(self, likely: Sequence[list[Base]], on_record: Sequence[str]) -> Found:
        """Those of several bases that may have a share in the suspect."""
        groups, errors = self._groups, []
        for records in likely:
            try:
                groups.append(Group(records, open_records(records, self._vault, self._held)))
            except VaultError as error:
                errors.append(error)
                self._found.gone.extend(NotRead(base.base_id, base.source, str(error)) for base in records)
        if not groups:
            raise errors[0]
        self._seed = int.from_bytes(derive(groups[0].records[0].secret, "likeness"), "big")  # nobody knows which
        samples = [self._sampled(group, self._suspect) for group in groups]
        likeness = [cosine(ours, theirs) for ours, theirs in samples]
        if max(likeness) < CLEARLY:  # perhaps few of the carriers are there
            self._most = len(max(groups, key=lambda group: len(group.records[0].carriers)).records[0].carriers)
            self._theirs.clear()
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
        best = groups[likeness.index(max(likeness))]
        best.why = f"the nearest, though unlike it (cosine {max(likeness):.3f})"
        self._found.groups.append(best)
        for group, cosine_of in zip(groups, likeness, strict=True):
            if group is not best:
                self._leave_unlike(group, cosine_of)
        return self._found

    def _leave_unlike(self, group: Group, cosine_of: float) -> None:
        """Leaves a base that is unlike the suspect; one that could not be compared at all is read, which says why."""
        if cosine_of == NOTHING_COMPARED:
            group.why = "what fits it of the suspect can't be compared"
            self._found.groups.append(group)
        else:
            self._found.leave(group.records, f"unlike the suspect (cosine {cosine_of:.3f})")

    def _with_share(
        self,
        groups: list[Group],
        samples: list[tuple[Sampled, Sampled]],
        likeness: list[float],
        on_record: Sequence[str],
    ) -> Found:
        """The bases that may have a share in the suspect, the largest first."""
        alike = [i for i in range(len(groups)) if likeness[i] >= DESCENDS]
        common = sorted(set.intersection(*(set(samples[i][0]) for i in alike)))
        if not common:  # bases that hold their marks in different tensors: nothing to tell them apart by
            for i in alike:
                groups[i].why = f"like the suspect (cosine {likeness[i]:.3f})"
                self._found.groups.append(groups[i])
            return self._found
        theirs = {name: samples[alike[0]][1][name] for name in common}
        shares = shares_of(theirs, [{name: samples[i][0][name] for name in common} for i in alike])
        for n in np.argsort(-shares.share, kind="stable").tolist():
            group = groups[alike[n]]
            group.why = f"a share of {shares.share[n]:.2f} +- {shares.error[n]:.2f} in the suspect"
            if shares.needed[n] or not self._found.groups:
                self._found.groups.append(group)
            else:
                self._found.leave(group.records, f"{group.why}: too little to tell its copies")
        for i, group in enumerate(groups):
            if i not in alike:
                self._leave_unlike(group, likeness[i])
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
        layout = tuple((carrier.name, base.tensors[carrier.name].shape) for carrier in base.carriers)
        once = matches is None  # of bases that are laid out alike, the suspect is matched and sampled once
        if matches is None:
            if layout not in self._matched:
                self._matched[layout] = self._match(group, suspect)
            suspect, matches = self._matched[layout]
        rows = self._rows(group, matches)
        own = {name: group.original.tensors[name] for name in rows}
        ours = {normalise(n): v for n, v in sample(group.original, own, rows, COLUMNS).items()}
        theirs = self._theirs.get(layout) if once else None
        if theirs is None or theirs.keys() != ours.keys():
            theirs = {normalise(n): v for n, v in sample(suspect, matches, rows, COLUMNS).items()}
        if once:
            self._theirs[layout] = theirs
        return ours, theirs

    def _match(self, group: Group, suspect: Weights) -> tuple[Weights, dict[str, TensorInfo]]:
        """The suspect in the base's names, and the carriers' counterparts: by names where these tell, else by
        likeness."""
        base = group.records[0]
        suspect = in_names_of(base, suspect)
        if isinstance(suspect, RangedCheckpoint) or names_tell(base, suspect):
            return suspect, match_names(base, suspect)
        return suspect, match_tensors(base, group.original, suspect)

    def _rows(self, group: Group, matches: dict[str, TensorInfo]) -> dict[str, Sequence[int]]:
        """Which rows of each carrier are compared: the same ones in all bases, which nobody else knows; or an attacker
        could give just those to another base."""
        own = group.original.tensors
        fitting = [name for name, info in matches.items() if name in own and own[name].shape == info.shape]
        if not isinstance(self._suspect, RangedCheckpoint):
            fitting = self._some(fitting)
            return {name: self._drawn(normalise(name), 0, own[name].rows) for name in fitting}
        fetched = self._first_rows(self._suspect)
        return {name: fetched[normalise(name)] for name in fitting if normalise(name) in fetched}

    def _some(self, names: list[str]) -> list[str]:
        """So many of some carriers, drawn by a secret: the same ones for each base that has them."""
        return names if len(names) <= self._most else sorted(names, key=self._place)[: self._most]

    def _place(self, name: str) -> float:
        """A number that the secret gives a carrier."""
        name = normalise(name)
        if name not in self._places:
            self._places[name] = float(np.random.default_rng([self._seed, 1, *name.encode()]).random())
        return self._places[name]

    def _drawn(self, name: str, start: int, stop: int) -> list[int]:
        """Some rows from `start` to `stop`, drawn by a secret."""
        if (name, start, stop) not in self._rows_of:
            rng = np.random.default_rng([self._seed, 0, start, *name.encode()])
            rows = start + rng.choice(stop - start, min(ROWS, stop - start), replace=False)
            self._rows_of[name, start, stop] = sorted(rows.tolist())
        return self._rows_of[name, start, stop]

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
                info, chosen = matches[piece.name], self._drawn(normalise(piece.name), piece.start, piece.stop)
                left -= (piece.stop - piece.start) * info.row_bytes
                wanted.append((info, piece.start * info.row_bytes, piece.stop * info.row_bytes))
                self._fetched.setdefault(normalise(piece.name), []).extend(chosen)
            suspect.fetch(wanted)
        return self._fetched


def _copied(groups: Sequence[Group]) -> Iterator[str]:
    """The bases that those of some groups are copies of."""
    for base in (base for group in groups for base in group.records):
        if base.copy_of is not None:
            yield base.copy_of
