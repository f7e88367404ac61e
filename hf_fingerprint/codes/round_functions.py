"""The score functions of a round of decoding, for all readings of a suspect; innocents' codewords play no part."""

from collections.abc import Sequence

import numpy as np

from hf_fingerprint.codes.codebook import Codebook
from hf_fingerprint.codes.residual import is_unexplained, residual_signal
from hf_fingerprint.codes.signals import Signal, to_signal, to_unit_scale
from hf_fingerprint.codes.strategy import infer_strategy, log_likelihood_ratio


def signals_of(codebook: Codebook, readings: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Signal]:
    """The signals that hold anything, or an empty one."""
    signals = [to_signal(*reading, codebook.length) for reading in readings]
    return [signal for signal in signals if np.any(signal.values)] or signals[:1]


def bank_functions(codebook: Codebook, readings: Sequence[Signal], packed: np.ndarray | None) -> np.ndarray:
    """The round's score functions of all readings."""
    return np.concatenate([standardized_functions(codebook, signal, packed) for signal in readings])


def standardized_functions(codebook: Codebook, signal: Signal, packed: np.ndarray | None) -> np.ndarray:
    """The round's score functions, after the accused's codewords (`packed`) are projected out."""
    known = np.empty((0, codebook.length)) if packed is None else np.unpackbits(packed, axis=1)
    residual, _ = to_unit_scale(residual_signal(codebook, signal.values, signal.mass, known))
    return codebook.standardize(codebook.score_functions(residual))


def ratio_function(codebook: Codebook, signal: Signal, packed: np.ndarray) -> np.ndarray | None:
    """The likelihood ratio under the inferred strategy, or `None` if the accused explain the signal."""
    known = np.unpackbits(packed, axis=1)
    if not is_unexplained(codebook, signal.values, signal.mass, known):
        return None
    held = known.sum(axis=0, dtype=np.intp)
    strategy = infer_strategy(codebook, signal.values, signal.mass, held, len(known))
    if strategy is None:
        return None
    return codebook.standardize(log_likelihood_ratio(codebook, signal.values, signal.mass, held, strategy)[None])
