"""Decides whether enough of a suspect was read to conclude that it holds nobody's copy.

The test: would a copy have been accused, had it been in the place of the suspect's weights and drifted as far as they
did? A reading weighs each weight by the inverse of its variance, so the mark b of a copy adds `mass * b`, with
a variance of `mass`. The variance of a copy's weight is that of the suspect's, plus 1 for the mark, in squared
amplitudes. Codewords of no recipient are drawn, and scored as a trace scores those of recipients.
"""

import hashlib
from collections.abc import Collection

import numpy as np

from hf_fingerprint.carriers import keyed_offset, position_counts
from hf_fingerprint.codes import prove_codeword
from hf_fingerprint.extraction import Extraction
from hf_fingerprint.extraction.extraction_sums import ExtractedSignal
from hf_fingerprint.extraction.tensor_place import MIN_VARIANCE
from hf_fingerprint.vault import Base


NOISE = 1.0  # amplitudes in each weight, more than rounding to half precision adds
MARGIN = 0.7  # of a mark that must be enough: three standard deviations of a score that accuses
TRIALS = 3


def would_detect_copy(base: Base, mass: np.ndarray, recipients: int, alpha: float, share: float = 1.0) -> bool:
    """Whether a copy would be accused with this many of its weights at each position, and [`NOISE`] in each.

    Args:
        base ([`Base`]): the base.
        mass (`np.ndarray` of shape `(V,)`): the number of weights at each position.
        recipients (`int`): how many recipients the bound pays for.
        alpha (`float`): the level at which this look accuses.
        share (`float`, *optional*, defaults to 1): the share of the weights that are a copy's.
    """
    return _simulate_copy(base, ExtractedSignal(share * mass, mass), recipients, alpha, NOISE)[1]


def would_surely_detect(base: Base, mass: np.ndarray, recipients: int, alpha: float) -> bool:
    """Whether [`MARGIN`] of the mark is enough with this many weights at each position, if they did not drift.

    Args:
        base, mass, recipients, alpha: see [`would_detect_copy`].
    """
    unmoved = mass / (1 + MIN_VARIANCE)
    return _simulate_copy(base, ExtractedSignal(MARGIN * unmoved, unmoved), recipients, alpha, NOISE)[1]


def would_show_copy(base: Base, extraction: Extraction, recipients: int, alpha: float, share: float = 1.0) -> bool:
    """Whether a copy in a suspect's place would surely be accused: whether [`MARGIN`] of its mark is enough.

    What the suspect's weights differ from the base's by, tensor by tensor and reading by reading, would be in a copy's
    as well, next to its mark: drift, rounding to few bits, other branches.

    Args:
        base, recipients, alpha, share: see [`would_detect_copy`].
        extraction ([`Extraction`]): the suspect's.
    """
    return _simulate_in_place(base, extraction, recipients, alpha, MARGIN * share)[1]


def drifted_copy_score(base: Base, extraction: Extraction, recipients: int, alpha: float, share: float = 1.0) -> float:
    """How a copy in a suspect's place would score, in the best reading; for the arguments see [`would_show_copy`]."""
    return _simulate_in_place(base, extraction, recipients, alpha, share)[0]


def _simulate_in_place(
    base: Base, extraction: Extraction, recipients: int, alpha: float, share: float
) -> tuple[float, bool]:
    """The mean score of a copy of which a share of the mark is in a suspect's place, and whether it is accused."""
    if not extraction.expected:
        return 0.0, False
    signal, mass = max(extraction.expected.values(), key=_information)
    noise = float(np.sqrt(NOISE**2 + extraction.interference))
    return _simulate_copy(base, ExtractedSignal(share * signal, mass), recipients, alpha, noise)


def _information(expected: ExtractedSignal) -> float:
    """The squared signal-to-noise ratio."""
    signal, mass = expected
    return float(np.divide(np.square(signal), mass, out=np.zeros_like(mass), where=mass > 0).sum())


def _simulate_copy(
    base: Base, expected: ExtractedSignal, recipients: int, alpha: float, noise: float
) -> tuple[float, bool]:
    """The mean score of a few codewords of no recipient, with noise of variance `mass` times `noise` squared, and
    whether all would be accused."""
    signal, mass = expected
    if not signal.any():
        return 0.0, False
    codebook = base.codebook()
    scores = []
    for trial in range(TRIALS):
        key = hashlib.sha256(f"hf_fingerprint: nobody's copy {trial}".encode()).digest()
        packed = codebook.packed([key])[0]
        disturbance = noise * np.sqrt(mass) * np.random.default_rng(trial).standard_normal(len(mass))
        extracted = signal * (2.0 * np.unpackbits(packed) - 1) + disturbance
        scores.append(prove_codeword(codebook, packed, extracted, mass, recipients, alpha))
    return float(np.mean([score for score, _ in scores])), all(proven for _, proven in scores)


def carrier_mass(base: Base, carriers: Collection[str]) -> np.ndarray:
    """The number of weights of these carriers at each position: `float64` of shape `(V,)`."""
    mass = np.zeros(base.length)
    for carrier in base.carriers:
        if carrier.name in carriers:
            weights = int(np.prod(base.tensors[carrier.name].shape))
            mass += position_counts(weights, keyed_offset(base.secret, carrier.name, base.length), base.length)
    return mass
