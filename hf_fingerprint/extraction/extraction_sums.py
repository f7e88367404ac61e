"""An extraction that grows part by part, and what it gives: the readings, and what they were read from."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hf_fingerprint.carriers import position_counts
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, TensorReader
from hf_fingerprint.extraction.blas import one_blas_thread
from hf_fingerprint.extraction.further_readings import MarkSums
from hf_fingerprint.extraction.match import match_names
from hf_fingerprint.extraction.placed import Bounds
from hf_fingerprint.extraction.weigh import TensorExtraction, extract_tensor
from hf_fingerprint.threads import map_ahead
from hf_fingerprint.vault import Base, Carrier


PLAIN, WHITENED, ANCESTOR = "plain", "whitened", "ancestor"
POSITION_CLIP = 2.0
MIN_DESCENDANT_COSINE = 0.2
THREADS = 2


@dataclass(frozen=True)
class Lineage:
    """Whether the suspect's weights descend from the base. No accusation depends on it.

    Attributes:
        descends (`bool`): whether the cosine is at least 0.2; models trained apart are at 0.
        cosine (`float`): the cosine over a sample of rows of each tensor read.
        drift (`float`): the norm of the difference, relative to the base's weights.
    """

    descends: bool
    cosine: float
    drift: float


class ExtractedSignal(NamedTuple):
    """The signal of one reading.

    Attributes:
        values (`np.ndarray` of shape `(V,)`): y, the extracted signal: weighted sums, clipped at each position.
        mass (`np.ndarray` of shape `(V,)`): the weight of each position; a whole mark gives `mass * b`.
    """

    values: np.ndarray
    mass: np.ndarray


@dataclass(frozen=True)
class Extraction:
    """The signal extracted from a suspect's weights.

    Attributes:
        values, mass (`np.ndarray` of shape `(V,)`): the plain reading; see [`ExtractedSignal`].
        tensors_matched (`int`): carriers found in the suspect.
        weights_read (`int`): weights compared.
        weights_dropped (`int`): weights left out because they are exactly 0, not finite, or in directions of a stream
            that are gone.
        lineage ([`Lineage`]): whether the weights descend from the base's.
        similar_counts (`np.ndarray` of shape `(V,)`): weights compared at each position that are the base's: in
            tensors similar to its, the coefficient times the weights, less those left out, spread evenly.
        missing (`tuple[str, ...]`): carriers without a counterpart.
        dissimilar (`tuple[str, ...]`): carriers whose counterpart isn't similar to the base's tensor.
        aligned (`int`): carriers whose rows or columns were aligned with the base's.
        placed (`tuple[str, ...]`): the suspect's tensors that hold carriers in another layout or under other names.
        all_compared (`bool`): whether all of the suspect's tensors of floats were compared with the carriers that
            were not found by name.
        held (`frozenset[str]`): the tensors of the suspect's files that were compared with carriers, or are similar to
            unmarked tensors of the same names.
        bounds (mapping of `str` to a sequence of `Bounds`): the parts of them that hold carriers, if they were moved.
        further (mapping of `str` to [`ExtractedSignal`]): the further readings, `"whitened"` and `"ancestor"`, if they
            differ from the plain one.
        interference (`float`): the variance of other carriers' marks in a weight, in units of its own mark's, where
            the suspect fused carriers.
        expected (mapping of `str` to [`ExtractedSignal`]): what each reading would extract of a copy that drifted as
            far as the suspect did: `values * b`, with a variance of `mass`.
    """

    values: np.ndarray
    mass: np.ndarray
    tensors_matched: int
    weights_read: int
    weights_dropped: int
    lineage: Lineage
    similar_counts: np.ndarray
    missing: tuple[str, ...] = ()
    dissimilar: tuple[str, ...] = ()
    aligned: int = 0
    placed: tuple[str, ...] = ()
    all_compared: bool = False
    held: frozenset[str] = frozenset()
    bounds: Mapping[str, Sequence[Bounds]] = field(default_factory=dict)
    further: Mapping[str, ExtractedSignal] = field(default_factory=dict)
    interference: float = 0.0
    expected: Mapping[str, ExtractedSignal] = field(default_factory=dict)

    @property
    def readings(self) -> dict[str, ExtractedSignal]:
        """All readings by name, the plain one first. They depend on no codeword, nor does their number."""
        return {PLAIN: ExtractedSignal(self.values, self.mass), **self.further}


class CarrierRows(NamedTuple):
    """Some rows of a carrier, and its counterpart in the suspect.

    Attributes:
        carrier ([`Carrier`]): the carrier.
        info ([`TensorInfo`]): its counterpart.
        rows (`slice`): the rows.
        share (`float`, *optional*, defaults to 1): the share of the weights' directions that the suspect has; in the
            others the counterpart is the base's.
    """

    carrier: Carrier
    info: TensorInfo
    rows: slice
    share: float = 1.0


class ExtractionSums:
    """An extraction that grows part by part; for the arguments see [`extract`]."""

    def __init__(self, base: Base, original: Checkpoint, suspect: TensorReader, ancestor: TensorReader | None = None):
        self._base, self._original, self._suspect, self._ancestor = base, original, suspect, ancestor
        self._in_ancestor = {} if ancestor is None else match_names(base, ancestor)
        # of each reading: values and masses, and those that are expected of a copy
        names = (PLAIN, WHITENED) if ancestor is None else (PLAIN, WHITENED, ANCESTOR)
        self._sums = {name: np.zeros((2, 2, base.length)) for name in names}
        self._used = {PLAIN}
        self._similar_counts, self._products = np.zeros(base.length), np.zeros(4)
        self._dissimilar: dict[str, None] = {}
        self._read = self._dropped = 0

    def add(self, parts: Sequence[CarrierRows], count: Callable[[int], None] | None = None) -> None:
        """Adds further parts.

        Args:
            parts (sequence of [`CarrierRows`]): parts that were not added before.
            count (callable, *optional*): called with the weights of each part; see [`counting`].
        """
        # two tensors at a time, each on one core, are faster than one whose products use both
        with one_blas_thread():
            for part, found in zip(parts, map_ahead(self._extract, parts, THREADS), strict=True):
                self._add_sums(found, part.share)
                read = round(part.share * (found.weights - found.dropped))
                self._read += read
                self._dropped += found.weights - read
                self._products += found.sample.products
                if _lineage(found.sample.products).descends and found.weights:
                    kept = found.coefficient * read / found.weights
                    self._similar_counts += kept * position_counts(found.weights, found.offset, self._base.length)
                else:
                    self._dissimilar[part.carrier.name] = None
                if count is not None:
                    count(found.weights)

    def _extract(self, part: CarrierRows) -> TensorExtraction:
        info = self._in_ancestor.get(part.carrier.name)
        ancestor = None if self._ancestor is None or info is None else (self._ancestor, info)
        return extract_tensor(self._base, part.carrier, self._original, self._suspect, part.info, part.rows, ancestor)

    def _add_sums(self, found: TensorExtraction, share: float) -> None:
        """Adds a tensor to all readings: to those that can't be made of it, as the one before.

        Whitened, it can show less than plainly, as where few columns drifted. Then it is taken plainly.
        A whole mark has only a share of its energy in the directions that are left, and so has the noise. Of a sliced
        tensor, further readings are expected to show what the plain one does.
        """
        masses = found.weight * _position_masses(found, self._base.length)
        kept = found.coefficient if _lineage(found.sample.products).descends else 0.0
        plain = MarkSums(found.weight * found.sums, masses, found.evidence)
        parts = np.empty((2, 2, self._base.length))
        shows_more = found.whitened is not None and float(found.whitened.masses.sum()) > float(masses.sum())
        whitened = found.whitened if shows_more else None
        for name, further in zip(self._sums, (plain, whitened, found.by_ancestor), strict=False):
            if further is not None:
                self._used.add(name)
                np.multiply(share, further.sums, out=parts[0, 0])
                np.multiply(share**2, further.masses, out=parts[0, 1])
                if further is plain or share == 1:  # whitening takes directions that are gone for some without drift
                    np.multiply(kept * further.evidence, parts[0, 1], out=parts[1, 0])
                    np.multiply(further.evidence, parts[0, 1], out=parts[1, 1])
            self._sums[name] += parts

    def extraction(self, found: Collection[str]) -> Extraction:
        """The extraction so far, where `found` names the carriers with a counterpart in the suspect."""
        readings = {
            name: ExtractedSignal(clip_positions(values, mass), mass.copy())
            for name, ((values, mass), _) in self._sums.items()
            if name in self._used
        }
        plain = readings.pop(PLAIN)
        return Extraction(
            plain.values,
            plain.mass,
            len(found),
            self._read,
            self._dropped,
            _lineage(self._products),
            self._similar_counts.copy(),
            tuple(carrier.name for carrier in self._base.carriers if carrier.name not in found),
            tuple(self._dissimilar),
            further=readings,
            expected={name: ExtractedSignal(*self._sums[name][1].copy()) for name in (PLAIN, *readings)},
        )


def _position_masses(found: TensorExtraction, length: int) -> np.ndarray:
    """The mass of each position in one tensor's extraction, before its weight."""
    if found.masses is not None:
        return found.masses
    counts = position_counts(found.weights, found.offset, length)
    return counts if found.missing is None else counts - found.missing


def _lineage(products: np.ndarray) -> Lineage:
    both, theirs, ours, distance = products
    cosine = float(both / np.sqrt(theirs * ours)) if theirs > 0 and ours > 0 else 0.0
    return Lineage(cosine >= MIN_DESCENDANT_COSINE, cosine, float(np.sqrt(distance / ours)) if ours > 0 else 0.0)


def clip_positions(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Clips positions at the larger of the mark's amplitude and twice the root mean square, so that none can
    dominate."""
    strength = np.divide(values, mass, out=np.zeros_like(values), where=mass > 0)
    limit = max(1.0, POSITION_CLIP * float(np.sqrt(np.mean(strength**2))))
    return np.clip(values, -limit * mass, limit * mass)
