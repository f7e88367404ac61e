"""Evidence by layer: a codeword's score in each marked tensor alone."""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.checkpoints import Checkpoint, TensorReader
from hf_fingerprint.codes import Codebook
from hf_fingerprint.codes.residual import residual_signal
from hf_fingerprint.extraction.aligning import match_and_align
from hf_fingerprint.extraction.extract import CarrierRows, Extraction, ExtractionSums
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    import torch


def evidence_by_layer(
    base: Base,
    original: Checkpoint,
    suspect: TensorReader,
    codeword: np.ndarray,
    aligned: bool = True,
    device: "str | torch.device | None" = None,
    ancestor: TensorReader | None = None,
) -> tuple[float, ...]:
    """The score of a codeword in each marked tensor alone.

    The mark is extracted as in a trace. An innocent's scores have mean 0 and variance 1; the squares of a copy's
    scores roughly add up over tensors. These scores only describe and never accuse.

    Args:
        base ([`Base`]): the registered base.
        original ([`Checkpoint`]): its open files.
        suspect ([`TensorReader`]): the open suspect.
        codeword (`np.ndarray` of shape `(V / 8,)`): packed bits.
        aligned (`bool`, *optional*, defaults to `True`): whether to align permuted channels first.
        device (`str` or `torch.device`, *optional*): see [`extract`].
        ancestor ([`TensorReader`], *optional*): see [`extract`].

    Returns:
        `tuple[float, ...]`: one score per carrier, in the order of `base.carriers`; 0 for missing tensors.
    """
    codebook = base.codebook()
    suspect, matches, _ = match_and_align(base, original, suspect, aligned, device=device)
    found = []
    for carrier in base.carriers:
        if carrier.name not in matches:
            found.append(0.0)
            continue
        sums = ExtractionSums(base, original, suspect, ancestor)
        sums.add([CarrierRows(carrier, matches[carrier.name], slice(0, len(carrier.amplitude)))])
        found.append(_score(codebook, codeword, sums.extraction([carrier.name])))
    return tuple(found)


def _score(codebook: Codebook, codeword: np.ndarray, extraction: Extraction) -> float:
    """The score by the first score function, the best one for single copies and averages, of the last reading."""
    *_, reading = extraction.readings.values()
    if not np.any(reading.values):
        return 0.0
    rest = residual_signal(codebook, *reading, np.empty((0, codebook.length)))
    functions = codebook.standardize(codebook.score_functions(rest)[:1])
    return float(codebook.packed_scores(codeword[None, :], functions)[0, 0])
