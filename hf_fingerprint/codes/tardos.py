"""The Tardos code: biases from the arcsine distribution.

G. Tardos, "Optimal probabilistic fingerprint codes", STOC 2003, with its cut-off 1/(300 c).
"""

import math
from functools import cached_property

import numpy as np

from hf_fingerprint.codes.biased import BiasedCodebook, to_thresholds


class Tardos(BiasedCodebook):
    """Arcsine-biased positions with the cut-off `1 / (300 c)`; for the arguments see [`BiasedCodebook`]."""

    family = "tardos"

    @cached_property
    def thresholds(self) -> np.ndarray:
        angle = math.asin(math.sqrt(1 / (300 * self.coalition)))
        return to_thresholds(np.sin(angle + self.uniforms() * (math.pi / 2 - 2 * angle)) ** 2)
