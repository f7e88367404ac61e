"""Interim looks at a suspect, which read its weights in an order that is fixed beforehand.

The order comes from the base's record alone: tensors with the strongest mark first, then larger ones, then by name,
each from its first row on. Look l has read the first `S_l` weights of that order; `S_1` gives every position a few
weights, and each look doubles the one before. So the extraction at look l is a function of the suspect alone, on which
the bound over all looks relies.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, RangedCheckpoint, TensorInfo
from hf_fingerprint.checkpoints.reader import ROW_MULTIPLE
from hf_fingerprint.extraction.extract import check_base_layout
from hf_fingerprint.extraction.extraction_sums import CarrierRows, Extraction, ExtractionSums
from hf_fingerprint.extraction.match import match_names
from hf_fingerprint.progress import Progress, counting
from hf_fingerprint.vault import Base, Carrier


FIRST_LOOK_WEIGHTS, FIRST_LOOK_PER_POSITION = 1 << 18, 4
MAX_RANGE_WEIGHTS = 1 << 22
BATCH_BYTES = 1 << 25


class RowRange(NamedTuple):
    """Some rows of a carrier; `start` is a multiple of 8, and so is `stop` unless it ends the tensor."""

    name: str
    start: int
    stop: int


def plan_looks(bases: Sequence[Base], found: Mapping[str, TensorInfo] | None = None) -> list[list[RowRange]]:
    """The row ranges that each look adds.

    Args:
        bases (sequence of [`Base`]): one base, or several that are compared together.
        found (mapping of `str` to [`TensorInfo`], *optional*): the carriers' counterparts; their shapes come first.
    """
    eps: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for base in bases:
        for carrier in base.carriers:
            eps[carrier.name] = max(carrier.eps, eps.get(carrier.name, 0.0))
            shapes.setdefault(carrier.name, base.tensors[carrier.name].shape)
    shapes |= {name: info.shape for name, info in (found or {}).items()}
    end = max(FIRST_LOOK_WEIGHTS, FIRST_LOOK_PER_POSITION * max(base.length for base in bases))
    looks: list[list[RowRange]] = [[]]
    done = 0
    for name in sorted(eps, key=lambda name: (-eps[name], -int(np.prod(shapes[name])), name)):
        rows, columns, start = shapes[name][0], int(np.prod(shapes[name][1:])), 0
        while start < rows:
            if done >= end:
                looks.append([])
                end *= 2
            wanted = min(end - done, MAX_RANGE_WEIGHTS) / (columns * ROW_MULTIPLE)
            stop = min(rows, start + int(np.ceil(wanted)) * ROW_MULTIPLE)
            looks[-1].append(RowRange(name, start, stop))
            done, start = done + (stop - start) * columns, stop
    return looks


class Looks:
    """Extraction from a suspect on the Hub, look by look, for one or several bases at once.

    Args:
        bases (sequence of pairs of [`Base`] and [`Checkpoint`]): the records, each with its open files.
        suspect ([`RangedCheckpoint`]): the open suspect; its tensors are matched by name and shape.
        ancestors (sequence of [`Checkpoint`] or `None`, *optional*): the ancestor of each base; see [`extract`].

    Attributes:
        complete (`bool`): whether all matched tensors were read to their end.

    Raises:
        [`CheckpointError`]: if the base's files differ from those that were registered.
    """

    def __init__(
        self,
        bases: Sequence[tuple[Base, Checkpoint]],
        suspect: RangedCheckpoint,
        ancestors: Sequence[Checkpoint | None] = (),
    ):
        self.complete = False
        self._bases, self._suspect = [base for base, _ in bases], suspect
        self._matches: dict[str, TensorInfo] = {}
        self._carriers: list[dict[str, Carrier]] = []  # for each base, the carriers that the suspect has
        for base, original in bases:
            check_base_layout(base, original)
            matches = match_names(base, suspect)
            self._carriers.append({carrier.name: carrier for carrier in base.carriers if carrier.name in matches})
            self._matches |= matches
        given = ancestors or [None] * len(bases)
        self._sums = [ExtractionSums(*base, suspect, ancestor) for base, ancestor in zip(bases, given, strict=True)]

    def extractions(self, progress: Progress | None = None, keep_fetched: bool = False) -> Iterator[list[Extraction]]:
        """Yields the extractions so far, one per base, after each look, until all allowed bytes were read.

        Args:
            progress (callable, *optional*): a [`Progress`].
            keep_fetched (`bool`, *optional*, defaults to `False`): whether the suspect keeps the fetched bytes.
        """
        count = counting(progress, "extracting", self._bases[0].carrier_weights)
        plan = plan_looks(self._bases, self._matches)
        for number, look in enumerate(plan, 1):
            is_exhausted, any_read = False, False
            for batch in self._batches([row_range for row_range in look if row_range.name in self._matches]):
                row_ranges = self._within_budget(batch)
                self._suspect.fetch(map(self._byte_range, row_ranges))
                any_read |= bool(row_ranges)
                for carriers, sums in zip(self._carriers, self._sums, strict=True):
                    parts = [
                        CarrierRows(carriers[name], self._matches[name], slice(start, stop))
                        for name, start, stop in row_ranges
                        if name in carriers
                    ]
                    sums.add(parts, count if sums is self._sums[0] else None)
                if not keep_fetched:
                    self._suspect.drop()
                if is_exhausted := row_ranges != batch:
                    break
            self.complete = number == len(plan) and not is_exhausted
            if is_exhausted and number > 1 and not any_read:
                return
            yield [sums.extraction(found) for found, sums in zip(self._carriers, self._sums, strict=True)]
            if is_exhausted:
                return

    def _byte_range(self, row_range: RowRange) -> tuple[TensorInfo, int, int]:
        info = self._matches[row_range.name]
        return info, row_range.start * info.row_bytes, row_range.stop * info.row_bytes

    def _batches(self, row_ranges: list[RowRange]) -> Iterator[list[RowRange]]:
        """The row ranges of a look, in batches of at most `BATCH_BYTES` bytes if no single range is larger."""
        batch: list[RowRange] = []
        batch_bytes = 0
        for row_range in row_ranges:
            _, start, stop = self._byte_range(row_range)
            if batch and batch_bytes + stop - start > BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
            batch.append(row_range)
            batch_bytes += stop - start
        if batch:
            yield batch

    def _within_budget(self, row_ranges: list[RowRange]) -> list[RowRange]:
        """The first row ranges that fit into the bytes allowed; the last one may be cut short."""
        if self._suspect.max_bytes is None:
            return row_ranges
        left = self._suspect.max_bytes - self._suspect.bytes_fetched
        found: list[RowRange] = []
        for row_range in row_ranges:
            info, start, stop = self._byte_range(row_range)
            if stop - start > left:
                rows = max(left, 0) // info.row_bytes // ROW_MULTIPLE * ROW_MULTIPLE
                return [*found, row_range._replace(stop=row_range.start + rows)] if rows else found
            found.append(row_range)
            left -= stop - start
        return found
