"""Selects the bases that may have a share in a suspect, by sampled rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints import NO_OPTIONS, HubOptions, RangedCheckpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.tensor_names import normalize_name
from hf_fingerprint.errors import VaultError
from hf_fingerprint.extraction import to_base_names
from hf_fingerprint.extraction.aligning import match_and_align
from hf_fingerprint.extraction.extraction_sums import MIN_DESCENDANT_COSINE
from hf_fingerprint.extraction.looks import plan_looks
from hf_fingerprint.extraction.match import has_unambiguous_names, match_names
from hf_fingerprint.extraction.placing import place_tensors
from hf_fingerprint.extraction.similarity import SampledWeights, estimate_shares, mean_cosine, sample_weights
from hf_fingerprint.keys import derive
from hf_fingerprint.tracing.groups import BaseGroup, BaseSelection, open_base_files
from hf_fingerprint.tracing.result import SkippedSource
from hf_fingerprint.vault import Base, Vault


if TYPE_CHECKING:
    import torch

CLEAR_COSINE = 0.9
NOTHING_COMPARED = -1.0  # the cosine if no tensor can be compared
CARRIERS, ROWS, COLUMNS = 16, 4, 512  # the sample: carriers, rows of each, weights of each row
_Layout = tuple[tuple[str, tuple[int, ...]], ...]
_Samples = tuple[SampledWeights, SampledWeights]  # the base's and the suspect's
_SAME_FAMILY_COSINE = 0.9  # fine-tunes of one model, whose channels have one order


class BaseSelector:
    """Compares samples of several bases with a suspect's, and selects the bases to read."""

    def __init__(
        self,
        vault: Vault,
        suspect: TensorReader,
        stack: ExitStack,
        found: BaseSelection,
        options: HubOptions = NO_OPTIONS,
        device: "str | torch.device | None" = None,
    ):
        self._options, self._device = options, device
        self._vault, self._suspect, self._stack, self._found = vault, suspect, stack, found
        self._groups: list[BaseGroup] = []
        self._matched: dict[_Layout, tuple[TensorReader, dict[str, TensorInfo]]] = {}
        self._theirs: dict[_Layout, SampledWeights] = {}
        self._rows_of: dict[tuple[str, int, int], list[int]] = {}
        self._priorities: dict[str, float] = {}
        self._seed, self._max_carriers = 0, CARRIERS
        self._fetched: dict[str, list[int]] | None = None

    def select(self, likely_bases: Sequence[list[Base]], on_record: Sequence[str]) -> BaseSelection:
        """Selects the bases that may have a share in the suspect."""
        groups, errors = self._groups, []
        for records in likely_bases:
            try:
                groups.append(BaseGroup(records, open_base_files(records, self._vault, self._stack, self._options)))
            except VaultError as error:
                errors.append(error)
                skipped = [SkippedSource(base.base_id, base.source, str(error)) for base in records]
                self._found.unavailable.extend(skipped)
        if not groups:
            raise errors[0]
        self._seed = int.from_bytes(derive(groups[0].records[0].secret, "likeness"), "big")  # keeps the rows secret
        samples, cosines = self._sample_pairs(groups)
        if max(cosines) < CLEAR_COSINE:  # the suspect may have only a few of the carriers
            self._max_carriers = max(len(group.records[0].carriers) for group in groups)
            self._theirs.clear()
            samples, cosines = self._sample_pairs(groups)
        if max(cosines) < MIN_DESCENDANT_COSINE and not isinstance(self._suspect, RangedCheckpoint):
            samples = self._align_samples(groups, samples)
            cosines = [mean_cosine(ours, theirs) for ours, theirs in samples]
        if errors and max(cosines) < CLEAR_COSINE:
            raise errors[0]
        if max(cosines) < MIN_DESCENDANT_COSINE:
            return self._select_nearest(groups, cosines)
        return self._select_by_share(groups, samples, cosines, on_record)

    def _select_nearest(self, groups: list[BaseGroup], cosines: list[float]) -> BaseSelection:
        """Selects the nearest base if none is similar to the suspect."""
        best = groups[cosines.index(max(cosines))]
        best.reason = f"the nearest base, though not similar to the suspect (cosine {max(cosines):.3f})"
        self._found.groups.append(best)
        for group, cosine in zip(groups, cosines, strict=True):
            if group is not best:
                self._skip_dissimilar(group, cosine)
        return self._found

    def _skip_dissimilar(self, group: BaseGroup, cosine: float) -> None:
        """Skips a base that isn't similar to the suspect. One that can't be compared is read, to report the reason."""
        if cosine == NOTHING_COMPARED:
            group.reason = "the suspect's tensors that fit it can't be compared"
            self._found.groups.append(group)
        else:
            self._found.skip(group.records, f"not similar to the suspect (cosine {cosine:.3f})")

    def _select_by_share(
        self, groups: list[BaseGroup], samples: list[_Samples], cosines: list[float], on_record: Sequence[str]
    ) -> BaseSelection:
        """Selects the bases that may have a share in the suspect, the largest first."""
        similar = [i for i in range(len(groups)) if cosines[i] >= MIN_DESCENDANT_COSINE]
        common = sorted(set.intersection(*(set(samples[i][0]) for i in similar)))
        if not common:  # the bases have no carrier in common, so their shares can't be separated
            for i in similar:
                groups[i].reason = f"similar to the suspect (cosine {cosines[i]:.3f})"
            self._found.groups += [groups[i] for i in similar]
            return self._found
        theirs = {name: samples[similar[0]][1][name] for name in common}
        shares = estimate_shares(theirs, [{name: samples[i][0][name] for name in common} for i in similar])
        for n in np.argsort(-shares.share, kind="stable").tolist():
            group = groups[similar[n]]
            group.reason = f"a share of {shares.share[n]:.2f} +- {shares.error[n]:.2f} in the suspect"
            if shares.is_relevant[n] or not self._found.groups:
                self._found.groups.append(group)
            else:
                self._found.skip(group.records, f"{group.reason}: too little to identify its copies")
        for i, group in enumerate(groups):
            if i not in similar:
                self._skip_dissimilar(group, cosines[i])
        self._add_required([*on_record, *_copy_origins(self._found.groups)], groups)
        return self._found

    def _add_required(self, wanted: Sequence[str], groups: list[BaseGroup]) -> None:
        """Adds bases that must be read with others: the origins of bases that are copies, and those on record."""
        waiting = list(wanted)
        while waiting:
            base_id = waiting.pop()
            for group in groups:
                ids = {base.base_id for base in group.records}
                if base_id in ids and group not in self._found.groups:
                    group.reason = "a base that was read is a copy of it, or the suspect's hash is on record for it"
                    self._found.groups.append(group)
                    self._found.not_read = [each for each in self._found.not_read if each.name not in ids]
                    waiting += _copy_origins([group])

    def _align_samples(self, groups: list[BaseGroup], samples: list[_Samples]) -> list[_Samples]:
        """Samples the suspect again, aligned with each base; fine-tunes of one model have one order."""
        found: list[_Samples | None] = [None] * len(groups)
        for i, group in enumerate(groups):
            if found[i] is not None:
                continue
            base, original = group.records[0], group.original
            aligned, matches, *_ = match_and_align(base, original, self._suspect, device=self._device)
            for j in range(i, len(groups)):
                if found[j] is None and (i == j or mean_cosine(samples[i][0], samples[j][0]) >= _SAME_FAMILY_COSINE):
                    found[j] = self._sample_pair(groups[j], aligned, matches)
        return [each for each in found if each is not None]

    def _sample_pairs(self, groups: list[BaseGroup]) -> tuple[list[_Samples], list[float]]:
        """The samples of each base and the suspect, and their cosines."""
        samples = [self._sample_pair(group, self._suspect) for group in groups]
        return samples, [mean_cosine(ours, theirs) for ours, theirs in samples]

    def _sample_pair(
        self, group: BaseGroup, suspect: TensorReader, matches: dict[str, TensorInfo] | None = None
    ) -> _Samples:
        """The same rows of a base and of the suspect, by normalized name."""
        base = group.records[0]
        layout = tuple((carrier.name, base.tensors[carrier.name].shape) for carrier in base.carriers)
        is_shared = matches is None  # for bases of one layout, the suspect is matched and sampled once
        if matches is None:
            if layout not in self._matched:
                self._matched[layout] = self._match_carriers(group, suspect)
            suspect, matches = self._matched[layout]
        rows = self._rows_to_sample(group, matches)
        own = {name: group.original.tensors[name] for name in rows}
        ours = {normalize_name(n): v for n, v in sample_weights(group.original, own, rows, COLUMNS).items()}
        theirs = self._theirs.get(layout) if is_shared else None
        if theirs is None or theirs.keys() != ours.keys():
            theirs = {normalize_name(n): v for n, v in sample_weights(suspect, matches, rows, COLUMNS).items()}
        if is_shared:
            self._theirs[layout] = theirs
        return ours, theirs

    def _match_carriers(self, group: BaseGroup, suspect: TensorReader) -> tuple[TensorReader, dict[str, TensorInfo]]:
        """The suspect under the base's names, and the carriers' counterparts by unambiguous names or similarity."""
        base = group.records[0]
        named = to_base_names(base, suspect)
        if isinstance(suspect, RangedCheckpoint) or has_unambiguous_names(base, named):
            return named, match_names(base, named)
        return place_tensors(base, group.original, suspect)[:2]

    def _rows_to_sample(self, group: BaseGroup, matches: dict[str, TensorInfo]) -> dict[str, Sequence[int]]:
        """The rows of each carrier to compare, the same in all bases. An attacker must not know them."""
        own = group.original.tensors
        names = [name for name, info in matches.items() if name in own and own[name].shape == info.shape]
        if not isinstance(self._suspect, RangedCheckpoint):
            if len(names) > self._max_carriers:
                names = sorted(names, key=self._priority)[: self._max_carriers]
            return {name: self._draw_rows(normalize_name(name), 0, own[name].rows) for name in names}
        fetched = self._fetch_first_rows(self._suspect)
        return {name: fetched[normalize_name(name)] for name in names if normalize_name(name) in fetched}

    def _priority(self, name: str) -> float:
        """A carrier's rank in the secret draw: the same carriers are drawn for each base that has them."""
        name = normalize_name(name)
        if name not in self._priorities:
            self._priorities[name] = float(np.random.default_rng([self._seed, 1, *name.encode()]).random())
        return self._priorities[name]

    def _draw_rows(self, name: str, start: int, stop: int) -> list[int]:
        """Draws rows from `start` to `stop` by a secret."""
        if (name, start, stop) not in self._rows_of:
            rng = np.random.default_rng([self._seed, 0, start, *name.encode()])
            rows = start + rng.choice(stop - start, min(ROWS, stop - start), replace=False)
            self._rows_of[name, start, stop] = sorted(rows.tolist())
        return self._rows_of[name, start, stop]

    def _fetch_first_rows(self, suspect: RangedCheckpoint) -> dict[str, list[int]]:
        """Draws rows within the first look at a suspect on the Hub, and fetches that look for good."""
        if self._fetched is None:
            bases = [group.records[0] for group in self._groups]
            matches = {name: info for base in bases for name, info in match_names(base, suspect).items()}
            self._fetched = {}
            wanted, left = [], math.inf if suspect.max_bytes is None else suspect.max_bytes - suspect.bytes_fetched
            for piece in plan_looks(bases, matches)[0]:
                if piece.name not in matches or (piece.stop - piece.start) * matches[piece.name].row_bytes > left:
                    continue
                info, name = matches[piece.name], normalize_name(piece.name)
                left -= (piece.stop - piece.start) * info.row_bytes
                wanted.append((info, piece.start * info.row_bytes, piece.stop * info.row_bytes))
                self._fetched.setdefault(name, []).extend(self._draw_rows(name, piece.start, piece.stop))
            suspect.fetch(wanted)
        return self._fetched


def _copy_origins(groups: Sequence[BaseGroup]) -> Iterator[str]:
    """The ids of the bases that the groups' bases are copies of."""
    return (base.copy_of for group in groups for base in group.records if base.copy_of is not None)
