"""The sums of one tensor, block by block: its signed differences by position, and what they weigh.

Where all weights of a tensor weigh the same, which is so unless it drifted unevenly or was pruned, a block is read in
one compiled pass. Otherwise numpy makes the passes. None of it looks at a codeword.
"""

from dataclasses import replace

import numpy as np

from hf_fingerprint.carriers import TensorProjection, fold
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import ROW_MULTIPLE, block_rows
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.extraction.further_readings import marked_mass
from hf_fingerprint.extraction.pruning_mixture import PruningMixture
from hf_fingerprint.extraction.tensor_place import MAX_DIFFERENCE, MIN_VARIANCE, TensorPlace, dropped_mask
from hf_fingerprint.native import passes


WEIGHT_CLIP_DEVIATIONS = 1.5  # of a weight's own distribution
MIN_COUNT = 1e-3
ROW_PRIOR = 4.0  # weights
_HALF = {"F32": False, "BF16": True}  # what the compiled pass reads


class TensorSums:
    """The sums of a tensor that grow block by block.

    Args:
        place ([`TensorPlace`]): the tensor.
        clip, columns, mixture: see [`SampleStatistics`].

    Attributes:
        sums, missing, masses (`np.ndarray` of shape `(V,)` or `None`): see [`TensorExtraction`].
        offset, done, dropped (`int`): the first weight's position; weights read so far, and those dropped among them.
    """

    def __init__(
        self, place: TensorPlace, clip: np.float32, columns: np.ndarray | None, mixture: PruningMixture | None
    ):
        self._place, self._clip, self._columns, self._mixture = place, clip, columns, mixture
        length, info = place.base.length, place.base_info
        self._projection = TensorProjection(
            place.base.secret, place.carrier.name, length, place.rows.start * info.columns
        )
        self.offset, self._length = self._projection.offset, length
        self.sums = np.zeros(length, np.float32)
        self.missing: np.ndarray | None = None
        self.masses = None if columns is None else np.zeros(length, np.float32)
        self.done, self.dropped = 0, 0
        self._energy = self._mass = self._marked = self._both = self._own = 0.0
        self._scratch = np.empty(0, np.float32)  # reused, since fresh pages per block cost more

    @property
    def weight(self) -> float:
        """The weight of the sums, see [`TensorExtraction`]."""
        if self.masses is not None:
            return 1.0
        return 1 / max(self._energy / max(self.done - self.dropped, 1), MIN_VARIANCE)

    @property
    def evidence(self) -> float:
        """The share of the mass that a copy would have; see [`marked_mass`]."""
        if self.masses is None:
            return 1 / (1 + self.weight)
        return self._marked / self._mass if self._mass else 0.0

    @property
    def coefficient(self) -> float:
        """How much of the base's weights is left; see [`TensorExtraction`]."""
        if not (self._own and np.isfinite(self._both)):
            return 0.0
        return float(np.clip(self._place.scale * self._both / self._own, 0, 1))

    def add(self, rows: slice, raw: np.ndarray, suspect_raw: np.ndarray) -> None:
        """Adds the next block.

        Args:
            rows (`slice`): its rows.
            raw, suspect_raw (`np.ndarray`): the bytes of these rows of the base's tensor and of the suspect's.
        """
        base_info, info = self._place.base_info, self._place.info
        if passes is not None and self._is_plain:
            weights = (rows.stop - rows.start) * base_info.columns
            signs, position = self._projection.take_signs(weights)
            found = passes.read_weights(
                suspect_raw,
                _HALF[info.dtype],
                raw,
                _HALF[base_info.dtype],
                self._place.inverse[rows],
                base_info.columns,
                float(self._clip),
                signs,
                position,
                self.sums,
            )
            if self._add_totals(*found):
                self._add_missing(dropped_mask(to_float32(suspect_raw, info.dtype)))
            self.done += weights
            return
        self._add_by_numpy(rows, to_float32(raw, base_info.dtype), to_float32(suspect_raw, info.dtype))

    def add_blocks(self) -> None:
        """Adds all blocks, one after another."""
        place, base_info, info = self._place, self._place.base_info, self._place.info
        first, count = place.rows.start, place.rows.stop - place.rows.start
        part = replace(base_info, shape=(count, *base_info.shape[1:]), nbytes=count * base_info.row_bytes)
        max_rows = max((rows.stop - rows.start for rows in block_rows(part)), default=0)
        buffers = [np.empty(max_rows * each.row_bytes, np.uint8) for each in (base_info, info)]
        for block in block_rows(part):
            start, stop = first + block.start, first + block.stop
            ours = place.original.read(base_info, start * base_info.row_bytes, stop * base_info.row_bytes, buffers[0])
            theirs = place.suspect.read(info, start * info.row_bytes, stop * info.row_bytes, buffers[1])
            self.add(slice(start, stop), ours, theirs)

    def add_files(self) -> bool:
        """Adds all blocks in one compiled pass over two files, if the tensors are in files that it can read.

        Raises:
            [`CheckpointError`]: if a file changed while it was read.
        """
        place, rows = self._place, self._place.rows
        theirs, ours = _file_of(place.suspect, place.info, rows), _file_of(place.original, place.base_info, rows)
        if passes is None or not self._is_plain or theirs is None or ours is None or rows.stop == rows.start:
            return False
        columns, count = place.base_info.columns, (rows.stop - rows.start) * place.base_info.columns
        step = next(block_rows(place.base_info)).stop
        step = -(-min(step, rows.stop - rows.start) // ROW_MULTIPLE) * ROW_MULTIPLE
        signs, position = self._projection.take_signs(count)
        buffers = [np.empty(step * info.row_bytes, np.uint8) for info in (place.info, place.base_info)]
        rest = float(self._clip), signs, position, self.sums, step, *buffers
        try:
            found = passes.read_files(theirs, ours, place.inverse[rows], columns, *rest)
        except EOFError as error:
            changed = place.original if str(error) == "ours" else place.suspect
            raise CheckpointError(f"{changed.source.name} ends too soon: it changed while it was read.") from None
        if self._add_totals(*found):
            for start in range(rows.start, rows.stop, step):
                end = min(start + step, rows.stop) * place.info.row_bytes
                raw = place.suspect.read(place.info, start * place.info.row_bytes, end)
                lost = dropped_mask(to_float32(raw, place.info.dtype))
                self._add_missing(lost)
                self.done += len(lost)
        self.done = count
        return True

    @property
    def _is_plain(self) -> bool:
        """Whether the compiled passes read the tensor: all weights weigh the same, and no factor is divided out."""
        is_plain = self._columns is None and self._place.scale == 1
        return is_plain and self._place.base_info.dtype in _HALF and self._place.info.dtype in _HALF

    def _add_totals(self, energy: float, both: float, own: float, dropped: int) -> int:
        self._energy, self._both, self._own = self._energy + energy, self._both + both, self._own + own
        return dropped

    def _add_by_numpy(self, rows: slice, ours: np.ndarray, theirs: np.ndarray) -> None:
        theirs, inverse = self._place.rescaled(theirs), self._place.inverse[rows, None]
        if len(self._scratch) < len(ours):
            self._scratch = np.empty(len(ours), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.subtract(theirs, ours, out=self._scratch[: len(ours)]).reshape(len(inverse), -1)
            difference *= inverse
            weights: np.ndarray | None = None
            clip: np.ndarray | np.float32 = self._clip
            if self._columns is not None:
                weights, clip = self._weigh(difference, theirs, ours.reshape(difference.shape) * inverse)
            np.clip(difference, -clip, clip, out=difference)
        power = float(np.vdot(difference, difference))
        with np.errstate(over="ignore", invalid="ignore"):
            product, square = float(theirs @ ours), float(ours @ ours)
        if not (np.isfinite(power) and np.isfinite(product)) or _any_zero(theirs):
            lost = dropped_mask(theirs)
            difference.reshape(-1)[lost] = 0
            self._add_missing(lost)
            with np.errstate(over="ignore", invalid="ignore"):
                product, square = (float(np.where(lost, 0, each) @ ours) for each in (theirs, ours))
            power = float(np.vdot(difference, difference))
        self._energy, self._both, self._own = self._energy + power, self._both + product, self._own + square
        if weights is not None and self.masses is not None:
            difference *= weights
            fold(weights.reshape(-1), self._position, self.masses)
            self._mass += float(weights.sum(dtype=np.float64))
            self._marked += float(marked_mass(weights).sum(dtype=np.float64))
        self._projection.read(difference, self.sums)
        self.done += difference.size

    @property
    def _position(self) -> int:
        """The position of the next weight."""
        return (self.offset + self.done) % self._length

    def _add_missing(self, lost: np.ndarray) -> None:
        self.missing = np.zeros(self._length, np.float32) if self.missing is None else self.missing
        fold(lost.astype(np.float32), self._position, self.missing)
        self.dropped += int(lost.sum())

    def _weigh(self, difference: np.ndarray, theirs: np.ndarray, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each weight's weight, and where to clip its difference, which is made finite in place."""
        assert self._columns is not None
        lost = dropped_mask(theirs).reshape(difference.shape)
        difference[lost] = 0
        np.clip(difference, -MAX_DIFFERENCE, MAX_DIFFERENCE, out=difference)
        kept = 1 - lost.astype(np.float32)
        if self._mixture is not None:
            kept *= self._mixture.probability_kept(scaled, difference)
        weights = _inverse_variances(difference, kept, self._columns, self._mixture)
        clip = WEIGHT_CLIP_DEVIATIONS / np.sqrt(weights)
        weights *= kept
        return weights, clip


def _file_of(checkpoint: TensorReader, info: TensorInfo, rows: slice) -> tuple[int, int, bool] | None:
    """The file that holds rows of a tensor, the offset of the first, and whether it is BF16; `None` if none does."""
    place = checkpoint.place_of(info) if isinstance(checkpoint, Checkpoint) else None
    return None if place is None else (place[0], place[1] + rows.start * info.row_bytes, _HALF.get(info.dtype, False))


def _inverse_variances(
    difference: np.ndarray, kept: np.ndarray, columns: np.ndarray, mixture: PruningMixture | None
) -> np.ndarray:
    """The inverse of each weight's variance, its row's times its column's: `float32` of the block's shape.

    In a pruned tensor, `ROW_PRIOR` weights of the tensor's variance are added to the few that a row has left.
    """
    squares = (kept * np.square(difference) / columns).sum(1, dtype=np.float64)
    counts = kept.sum(1, dtype=np.float64)
    if mixture is not None:
        squares, counts = squares + ROW_PRIOR * mixture.variance, counts + ROW_PRIOR
    rows = squares / np.maximum(counts, MIN_COUNT)
    return (1 / np.maximum(rows[:, None] * columns, MIN_VARIANCE)).astype(np.float32)


def _any_zero(values: np.ndarray) -> bool:
    return any((part == 0).any() for part in np.array_split(values, 1 + len(values) // 65536))
