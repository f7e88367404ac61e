"""Confidence intervals of means, from independent observations or from groups of them."""

from collections.abc import Sequence
from math import sqrt

import numpy as np


CONFIDENCE_LEVEL = 0.95


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean over `count` independent observations in [0, 1].

    Zeros and ones have the largest spread for a given mean, so the interval is wide enough for other values as well.
    """
    from scipy.special import ndtri

    z = float(ndtri(0.5 + CONFIDENCE_LEVEL / 2))
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def student_interval(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of non-negative values, from independent groups of them."""
    from scipy.special import stdtrit

    mean, variance = _mean_and_variance(groups)
    if len(groups) < 2:
        return 0.0, mean
    shares = np.array([len(group) for group in groups]) / sum(len(group) for group in groups)
    half = float(stdtrit(len(groups) - 1, 0.5 + CONFIDENCE_LEVEL / 2)) * sqrt(variance * float((shares**2).sum()))
    return max(0.0, mean - half), mean + half


def between_group_std(groups: Sequence[np.ndarray]) -> float:
    """The standard deviation of the groups' true means: the measured means' without the noise within the groups."""
    if len(groups) < 2:
        return 0.0
    sizes = np.array([len(group) for group in groups])
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / max(1, sizes.sum() - len(groups))
    return sqrt(max(0.0, _mean_and_variance(groups)[1] - within / float(sizes.mean())))


def _mean_and_variance(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean of all values, and the variance of the groups' means about it."""
    sizes, means = np.array([len(group) for group in groups]), np.array([group.mean() for group in groups])
    mean = float((sizes * means).sum() / sizes.sum())
    variance = float((sizes / sizes.sum() * (means - mean) ** 2).sum())
    return mean, variance * len(groups) / max(1, len(groups) - 1)
