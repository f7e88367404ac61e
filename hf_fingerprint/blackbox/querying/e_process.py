"""The evidence in a suspect's responses, as e-processes, with a bound that holds whenever the queries stop.

An innocent recipient's labels are independent of the suspect: each agrees with the response with probability
`1 / classes`, whatever was queried before. A bettor who spreads a wealth of 1 evenly over all higher rates of
agreement has, after k of n responses to the recipient's assigned triggers agree, the wealth

    E = integral over t in (p, 1) of t^k (1 - t)^(n - k) dt / ((1 - p) p^k (1 - p)^(n - k)),    p = 1 / classes.

The bets are fair, so E is a martingale that starts at 1 and ever reaches `1 / delta` with probability at most delta
(J. Ville, 1939; for sequential tests H. Robbins, "Statistical methods related to the law of the iterated logarithm",
1970). A union bound over the recipients completes the proof. Nothing is estimated, decoys don't count, and anybody who
has the responses can repeat the calculation.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincc, betaln

from hf_fingerprint.blackbox.trigger_set.labels import check_class_count, check_trigger_counts, label_blocks
from hf_fingerprint.codes import check_alpha
from hf_fingerprint.errors import CodeError


MAX_RESPONSES = 1 << 32  # with more, the logarithms lose digits that the bound needs


def log_e_value(agreeing: np.ndarray, queried: np.ndarray | int, classes: int) -> np.ndarray:
    """The log e-value, `log E`, of a number of agreeing responses.

    Args:
        agreeing (`np.ndarray`): k, each from 0 to `queried`.
        queried (`np.ndarray` or `int`): n, of the same shape or one for all.
        classes (`int`): the model's number of classes.

    Returns:
        `np.ndarray` of the same shape: natural logarithms, minus infinity where the wealth is lost.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, or the counts are impossible.
    """
    check_class_count(classes)
    k, queried, p = np.asarray(agreeing, float), np.asarray(queried, float), 1 / classes
    integral = (k == np.floor(k)) & (queried == np.floor(queried))
    if not np.all(integral & (k >= 0) & (k <= queried) & (queried <= MAX_RESPONSES)):  # NaN neither
        raise CodeError(
            f"The counts of agreeing responses are not possible: give whole numbers from 0 to the number of "
            f"responses, which is at most {MAX_RESPONSES:,}."
        )
    a, b = k + 1, queried - k + 1
    with np.errstate(divide="ignore"):  # if far too few agree, no wealth is left
        above = np.log(betaincc(a, b, p))
    return betaln(a, b) + above - math.log1p(-p) - k * math.log(p) - (queried - k) * math.log1p(-p)


class EProcess:
    """The e-process of each recipient, updated with each response.

    Args:
        copy_keys (sequence of `bytes`): of all recipients tested.
        triggers (`int`): the number of trigger images.
        classes (`int`): the model's number of classes.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on accusing any innocent, whenever the queries stop;
            at most 0.05.
        assigned_share (`float`, *optional*, defaults to 1): the probability that a trigger is assigned to a recipient.
            A response counts only for recipients that the trigger is assigned to.

    Attributes:
        queried (`int`): the number of responses counted.

    Raises:
        [`CodeError`]: if `alpha`, `triggers`, `classes` or `assigned_share` is out of range.
    """

    def __init__(
        self, copy_keys: Sequence[bytes], triggers: int, classes: int, alpha: float = 1e-6, assigned_share: float = 1.0
    ):
        check_alpha(alpha)
        check_trigger_counts(triggers, classes, assigned_share)
        self.triggers, self.queried = triggers, 0
        self._classes, self._alpha = classes, alpha
        self._labels = np.empty((triggers, len(copy_keys)), np.uint16)
        self._assigned = np.empty((triggers, len(copy_keys)), bool)
        for rows, labels, assigned in label_blocks(copy_keys, triggers, classes, assigned_share):
            self._labels[:, rows], self._assigned[:, rows] = labels.T, assigned.T
        self._queried = np.zeros(triggers, bool)
        self._agreeing, self._counted = np.zeros((2, len(copy_keys)), np.int64)

    def __repr__(self) -> str:
        return f"EProcess({self.queried} of {len(self._queried)} responses, {len(self._agreeing)} recipients)"

    def update(self, trigger: int, response: int | None) -> None:
        """Counts a response.

        Args:
            trigger (`int`): the trigger queried. The choice may depend on earlier responses, but not on labels.
            response (`int` or `None`): the predicted class; `None`, which doesn't count, without a usable response.

        Raises:
            [`CodeError`]: if there is no such trigger or class, or the trigger has a response already.
        """
        if not 0 <= trigger < len(self._queried):
            raise CodeError(f"Trigger {trigger} does not exist: choose one of 0 to {len(self._queried) - 1}.")
        if self._queried[trigger]:
            raise CodeError(f"Trigger {trigger} already has a response: count each response once.")
        if response is None:
            return
        if not 0 <= response < self._classes:
            classes = f"give a class from 0 to {self._classes - 1}"
            raise CodeError(f"Trigger {trigger} has the response {response}: {classes}.")
        self._queried[trigger] = True
        self._counted += self._assigned[trigger]
        self._agreeing += self._assigned[trigger] & (self._labels[trigger] == response)
        self.queried += 1

    @property
    def agreeing(self) -> np.ndarray:
        """The number of responses that agree with each recipient's labels: `(n,)`."""
        return self._agreeing.copy()

    @property
    def counted(self) -> np.ndarray:
        """The number of responses to triggers assigned to each recipient: `(n,)`."""
        return self._counted.copy()

    def log10_bounds(self) -> np.ndarray:
        """Decimal logarithms of each recipient's bound, `(n,)`: the probability that any innocent ever gets as far is
        at most this, however long the queries continue."""
        log_bounds = math.log(max(len(self._agreeing), 1)) - log_e_value(self._agreeing, self._counted, self._classes)
        return np.minimum(log_bounds / math.log(10), 0.0)

    def accused(self) -> np.ndarray:
        """The indices of the recipients whose bound is at most alpha, lowest bound first."""
        bounds = self.log10_bounds()
        order = np.argsort(bounds, kind="stable")
        return order[bounds[order] <= math.log10(self._alpha)]
