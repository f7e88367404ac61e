"""Evidence by layer: a codeword's score in each marked tensor alone."""

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorReader
from hf_fingerprint.codes import Codebook
from hf_fingerprint.codes.residual import residual_signal
from hf_fingerprint.extraction.aligning import AlignedSuspect
from hf_fingerprint.extraction.extract import whole_carriers
from hf_fingerprint.extraction.extraction_sums import Extraction, ExtractionSums
from hf_fingerprint.vault import Base


def evidence_by_layer(
    base: Base,
    original: Checkpoint,
    found: AlignedSuspect,
    codeword: np.ndarray,
    ancestor: TensorReader | None = None,
) -> tuple[float, ...]:
    """The score of a codeword in each marked tensor alone.

    The mark is extracted as in a trace. An innocent's scores have mean 0 and variance 1; the squares of a copy's
    scores roughly add up over tensors. These scores only describe and never accuse.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        found ([`AlignedSuspect`]): the open suspect, as [`match_and_align`] returns it.
        codeword (`np.ndarray` of shape `(V / 8,)`): packed bits.
        ancestor ([`TensorReader`], *optional*): see [`extract`].

    Returns:
        `tuple[float, ...]`: one score per carrier, in the order of `base.carriers`; 0 for missing tensors.
    """
    codebook = base.codebook()
    scores = dict.fromkeys((carrier.name for carrier in base.carriers), 0.0)
    for part in whole_carriers(base, found):
        sums = ExtractionSums(base, original, found.suspect, ancestor)
        sums.add([part])
        scores[part.carrier.name] = _score(codebook, codeword, sums.extraction([part.carrier.name]))
    return tuple(scores.values())


def _score(codebook: Codebook, codeword: np.ndarray, extraction: Extraction) -> float:
    """The score by the first score function, the best one for single copies and averages, of the last reading."""
    *_, reading = extraction.readings.values()
    if not np.any(reading.values):
        return 0.0
    rest = residual_signal(codebook, *reading, np.empty((0, codebook.length)))
    functions = codebook.standardize(codebook.score_functions(rest)[:1])
    return float(codebook.packed_scores(codeword[None, :], functions)[0, 0])
