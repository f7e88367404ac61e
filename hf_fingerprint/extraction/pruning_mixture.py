"""Finds weights that were pruned and then trained: they are no longer 0 and yet carry no mark.

A pruned weight that is trained again starts from 0, without its mark, so its difference to the base is many times the
mark. A tensor's weights are modeled as a mixture: each is drawn around the base's weight or around 0, with one spread,
and counts by the probability that it was kept,

    P(kept) = (1 - pi) N(w; w_ref, s^2) / ((1 - pi) N(w; w_ref, s^2) + pi N(w; 0, s^2)),

with the maximum-likelihood share pi and spread s (A. Dempster, N. Laird, D. Rubin, "Maximum likelihood from incomplete
data via the EM algorithm", 1977). None of it looks at a codeword.
"""

from dataclasses import dataclass

import numpy as np


EM_STEPS = 20
MIN_ZEROED_SHARE, MAX_VARIANCE = 0.02, 1 / 16  # shares of the weights and of the base's mean square
MIN_SHARE, MIN_VARIANCE = 1e-6, 1e-6


@dataclass(frozen=True)
class PruningMixture:
    """The mixture that a tensor's weights are drawn from.

    Attributes:
        share (`float`): pi, the share of weights that were set to 0.
        variance (`float`): s^2, the variance that training added since, in units of the squared amplitude.
    """

    share: float
    variance: float

    def probability_kept(self, ours: np.ndarray, difference: np.ndarray) -> np.ndarray:
        """The probability that each weight was not set to 0, of the arguments' shape and type.

        Args:
            ours, difference (`np.ndarray`): the base's weights, and the suspect's minus the base's, in amplitudes.
        """
        from scipy.special import expit, logit

        odds = ours * (difference + ours / 2)  # half of (w^2 - (w - w_ref)^2)
        odds /= self.variance
        odds -= float(logit(self.share))
        return expit(odds)


def fit_pruning_mixture(ours: np.ndarray, difference: np.ndarray) -> PruningMixture | None:
    """Fits the mixture to a sample of a tensor's weights.

    Args:
        ours, difference (`np.ndarray` of one shape): see [`PruningMixture.probability_kept`]; without weights now 0.

    Returns:
        [`PruningMixture`] or `None`: `None` if fewer than one weight in fifty was set to 0, or if the spread is more
        than a quarter of the base's weights: changes of that size (noise, low rank) leave some weights near 0 too.
    """
    kept, zeroed, most = np.square(difference), np.square(difference + ours), MAX_VARIANCE * np.square(ours).mean()
    if np.mean(zeroed < kept) < MIN_ZEROED_SHARE:
        return None
    found = PruningMixture(0.5, max(float(np.minimum(kept, zeroed).mean()), MIN_VARIANCE))
    for _ in range(EM_STEPS):
        probability = found.probability_kept(ours, difference)
        variance = float((probability * kept + (1 - probability) * zeroed).mean())
        share = float(np.clip(1 - probability.mean(), MIN_SHARE, 1 - MIN_SHARE))
        found = PruningMixture(share, max(variance, MIN_VARIANCE))
    return found if found.share >= MIN_ZEROED_SHARE and found.variance <= most else None
