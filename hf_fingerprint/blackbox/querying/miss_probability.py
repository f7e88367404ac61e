"""The probability that a number of responses misses a verbatim copy; "nobody" is reported only where it is small.

A verbatim copy predicts about nine tenths of its assigned labels. The number of triggers assigned to it, and the
number of labels that it predicts, are binomial, so the probability of an accusation is computed exactly. It depends on
no copy's key: that nobody is accused reveals nothing about anybody's labels.
"""

import math

import numpy as np
from scipy.stats import binom

from hf_fingerprint.blackbox.querying.e_process import log_e_value


MAX_MISS_PROBABILITY = 0.01  # over all copies together, at which "nobody" is reported
_NEGLIGIBLE = 1e-12  # the probability of the cases left out of the sum


def log10_miss_probability(
    answered: int, assigned_share: float, recall: float, classes: int, copies: int, alpha: float
) -> float:
    """Decimal logarithm of the probability that a number of responses does not accuse a verbatim copy.

    Args:
        answered (`int`): the number of responses, those to decoys not counted.
        assigned_share, recall, classes: see [`TriggerSet`].
        copies (`int`): the number of copies tested.
        alpha (`float`): the bound on accusing any innocent.
    """
    if not answered:
        return 0.0
    needed = math.log(copies) - math.log(alpha)
    own = np.arange(int(binom.ppf(_NEGLIGIBLE, answered, assigned_share)), answered + 1)
    # bisection for the lowest agreement that accuses; one more than all if none does
    low, high = np.zeros_like(own), own + 1
    while (low < high).any():
        middle = (low + high) // 2
        accuses = log_e_value(np.minimum(middle, own), own, classes) >= needed
        low, high = np.where(accuses | (low >= high), low, middle + 1), np.where(accuses, middle, high)
    missed = float((binom.pmf(own, answered, assigned_share) * binom.cdf(low - 1, own, recall)).sum()) + _NEGLIGIBLE
    return math.log10(min(missed, 1.0))
