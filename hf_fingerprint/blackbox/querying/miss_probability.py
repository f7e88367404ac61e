"""Whether so much was answered that nobody's copy can have gone unseen: how likely a verbatim copy would be missed.

A verbatim copy tells some nine tenths of its own labels. Which questions are its own is as good as drawn from its key,
so how many of those answered are, and how many of these it tells, are sums of coin tosses; where they end in an
accusation is counted exactly. No copy's key enters: that "nobody" is said tells nothing of anybody's labels.
"""

import math

import numpy as np
from scipy.stats import binom

from hf_fingerprint.blackbox.querying.e_process import log_e_value


MAX_MISS_PROBABILITY = 0.01  # the odds, over all copies together, at which one may still be said to have been seen
_NEGLIGIBLE = 1e-12  # of what is left out of the count


def log10_miss_probability(
    answered: int, assigned_share: float, recall: float, classes: int, copies: int, alpha: float
) -> float:
    """Decimal logarithm of the odds that a verbatim copy is not accused by so many answers.

    Args:
        answered (`int`): answers to questions, decoys left out.
        assigned_share (`float`): the odds that a recipient owns a question.
        recall (`float`): the share of its own labels that a verbatim copy tells.
        classes (`int`): of the model.
        copies (`int`): how many are tested.
        alpha (`float`): the bound to be met.
    """
    if not answered:
        return 0.0
    needed = math.log(copies) - math.log(alpha)
    own = np.arange(int(binom.ppf(_NEGLIGIBLE, answered, assigned_share)), answered + 1)
    # the least agreement that accuses, by halving; one more than all if none does
    low, high = np.zeros_like(own), own + 1
    while (low < high).any():
        middle = (low + high) // 2
        accuses = log_e_value(np.minimum(middle, own), own, classes) >= needed
        low, high = np.where(accuses | (low >= high), low, middle + 1), np.where(accuses, middle, high)
    missed = float((binom.pmf(own, answered, assigned_share) * binom.cdf(low - 1, own, recall)).sum()) + _NEGLIGIBLE
    return math.log10(min(missed, 1.0))
