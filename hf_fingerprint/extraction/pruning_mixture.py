"""Which weights were pruned and then trained on: they aren't 0 any more, and yet say nothing.

A pruned weight that is trained again starts from 0, its mark gone with the rest of it; what it differs by from the
base is minus the base's own weight, many times the mark. So a tensor's weights are taken for a mixture, each drawn
either around the base's or around 0, with one spread, and each counts by the probability that it was kept,

    P(kept) = (1 - pi) N(w; w_ref, s^2) / ((1 - pi) N(w; w_ref, s^2) + pi N(w; 0, s^2)),

with the share pi and the spread s that make the tensor likeliest (A. Dempster, N. Laird, D. Rubin, "Maximum likelihood
from incomplete data via the EM algorithm", 1977). None of it looks at a codeword.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit


EM_STEPS = 20
MIN_ZEROED_SHARE, MAX_VARIANCE = 0.02, 1 / 16  # of the weights; of the base's mean square
MIN_SHARE, MIN_VARIANCE = 1e-6, 1e-6


@dataclass(frozen=True)
class PruningMixture:
    """How a tensor was pruned and trained on.

    Attributes:
        share (`float`): of its weights that were set to 0, pi.
        variance (`float`): of what training added to a weight since, s^2, in units of the mark's amplitude squared.
    """

    share: float
    variance: float

    def kept(self, ours: np.ndarray, difference: np.ndarray) -> np.ndarray:
        """The probability that a weight was not set to 0.

        Args:
            ours (`np.ndarray`): the base's weights, in units of the mark's amplitude.
            difference (`np.ndarray` of the same shape): the suspect's less the base's, in the same units.

        Returns:
            `np.ndarray`: of the same shape and type.
        """
        odds = ours * (difference + ours / 2)  # half of (w^2 - (w - w_ref)^2)
        odds /= self.variance
        odds -= float(logit(self.share))
        return expit(odds)


def fit_pruning_mixture(ours: np.ndarray, difference: np.ndarray) -> PruningMixture | None:
    """Tells from a sample of a tensor's weights whether some were set to 0 and trained on.

    Args:
        ours, difference (`np.ndarray` of one shape): see [`PruningMixture.kept`]; weights that are 0 now are left out.

    Returns:
        [`PruningMixture`] or `None`: `None` if that is so of less than one in fifty, or if the spread is more than a quarter
            of the base's weights: what moves weights that far (noise, a low rank) leaves some near 0 too.
    """
    kept, zeroed, most = np.square(difference), np.square(difference + ours), MAX_VARIANCE * np.square(ours).mean()
    if np.mean(zeroed < kept) < MIN_ZEROED_SHARE:
        return None
    found = PruningMixture(0.5, max(float(np.minimum(kept, zeroed).mean()), MIN_VARIANCE))
    for _ in range(EM_STEPS):
        probability = found.kept(ours, difference)
        variance = float((probability * kept + (1 - probability) * zeroed).mean())
        share = float(np.clip(1 - probability.mean(), MIN_SHARE, 1 - MIN_SHARE))
        found = PruningMixture(share, max(variance, MIN_VARIANCE))
    return found if found.share >= MIN_ZEROED_SHARE and found.variance <= most else None
