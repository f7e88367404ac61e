"""Predicts the share of decisions that a mark leaves unchanged.

To count reversed decisions takes many images: at an agreement of 99.5 % it is five in a thousand, give or take two. So
the share is extrapolated from decisions that a stronger mark would reverse. To first order a mark's change of a margin
grows with its amplitude and has either sign with equal probability. A mark k times as strong then reverses half of the
decisions whose margin is below k times the change. Their share is proportional to k, as long as the margins' density
is that at 0. It is counted at the k that brings it to a twentieth, and divided by k.
"""

from collections.abc import Sequence

import numpy as np

from hf_fingerprint.registration.intervals import student_interval, wilson_interval


COUNTED_SHARE, MIN_COUNTED = 0.05, 10  # of the decisions; of the images, if there are that many


def predict_agreement(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The agreement of marked copies with the base, and a lower limit of it (97.5 %).

    Args:
        groups (sequence of `np.ndarray` of shape `(images, positions)`): the [`reversing_factor`] of each decision, in
            groups that share a copy.
    """
    factors = np.concatenate([group.ravel() for group in groups])
    images = sum(len(group) for group in groups)
    share = min(0.5, max(COUNTED_SHARE, MIN_COUNTED / images))
    rank = max(0, round(share * len(factors)) - 1)
    factor = max(1.0, float(np.partition(factors, rank)[rank]))
    if not np.isfinite(factor):  # these outputs don't change at all
        return 1.0, 1.0
    counted = [(group <= factor).mean(1) for group in groups]
    mean = float(np.concatenate(counted).mean())
    high = max(wilson_interval(mean, images)[1], min(1.0, student_interval(counted)[1]))
    return 1 - mean / (2 * factor), 1 - high / (2 * factor)
