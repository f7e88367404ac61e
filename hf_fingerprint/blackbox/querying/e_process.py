"""What a suspect's answers prove, answer by answer, with a bound that holds whenever one stops.

An innocent's labels are independent of the suspect, so each agrees with its answer with probability `1 / classes`, one
after another, whatever was asked and answered before. Someone who stakes on more agreement than that, share by share
of what they have, wins

    E = integral over t in (p, 1) of t^k (1 - t)^(n - k) dt / ((1 - p) p^k (1 - p)^(n - k)),    p = 1 / classes,

after k of n answers to the recipient's own questions agree: a fair game, so E is a martingale that begins at 1, and
ever reaches `1 / delta` with probability at most delta (J. Ville, 1939; for sequential tests H. Robbins, "Statistical
methods related to the law of the iterated logarithm", 1970). A union over the recipients is all that the bound needs
more: nothing is estimated, no decoy enters, and who sees the answers can work it out again.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincc, betaln

from hf_fingerprint.blackbox.trigger_set.labels import check_class_count, check_trigger_counts, label_blocks
from hf_fingerprint.codes import check_alpha
from hf_fingerprint.errors import CodeError


MAX_RESPONSES = 1 << 32  # of more, the logarithms lose digits that the bound needs


def log_e_value(agreeing: np.ndarray, queried: np.ndarray | int, classes: int) -> np.ndarray:
    """What was won, `log E`, by so many agreeing answers.

    Args:
        agreeing (`np.ndarray`): k, each from 0 to `queried`.
        queried (`np.ndarray` or `int`): n, of the same shape or one for all.
        classes (`int`): of the model.

    Returns:
        `np.ndarray` of the same shape, natural logarithms; minus infinity where nothing is left of the stake.

    Raises:
        [`CodeError`]: if there are fewer than 2 classes or more than 65,536, or counts that no answers give.
    """
    check_class_count(classes)
    k, queried, p = np.asarray(agreeing, float), np.asarray(queried, float), 1 / classes
    integral = (k == np.floor(k)) & (queried == np.floor(queried))
    if not np.all(integral & (k >= 0) & (k <= queried) & (queried <= MAX_RESPONSES)):  # NaN neither
        raise CodeError(
            f"So many answers can't agree: give whole numbers, from 0 to those asked, which are at most "
            f"{MAX_RESPONSES:,}."
        )
    alpha_parameter, beta_parameter = k + 1, queried - k + 1
    with np.errstate(divide="ignore"):  # far too few agree: the stake is lost to the last digit
        above = np.log(betaincc(alpha_parameter, beta_parameter, p))
    return (
        betaln(alpha_parameter, beta_parameter)
        + above
        - math.log1p(-p)
        - k * math.log(p)
        - (queried - k) * math.log1p(-p)
    )


class EProcess:
    """The evidence against each recipient, growing with every answer.

    Args:
        copy_keys (sequence of `bytes`): of all recipients tested.
        triggers (`int`): how many questions there are to ask at most.
        classes (`int`): of the model.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on accusing any innocent, whenever one stops; at most
            0.05.
        assigned_share (`float`, *optional*, defaults to 1): the odds that a recipient owns a question; only answers to its own
            count for or against it.

    Attributes:
        triggers (`int`): how many there are.
        queried (`int`): answers counted.

    Raises:
        [`CodeError`]: if nobody can be accused at this alpha, or by so many questions, classes or such a share.
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
        return f"Evidence({self.queried} of {len(self._queried)} answers, {len(self._agreeing)} recipients)"

    def update(self, trigger: int, response: int | None) -> None:
        """Counts an answer.

        Args:
            trigger (`int`): which question was asked. Which to ask next may hang on answers, not on labels.
            response (`int` or `None`): the class told; `None` if there was no answer, which proves nothing.

        Raises:
            [`CodeError`]: if there is no such question or class, or the question was answered before.
        """
        if not 0 <= trigger < len(self._queried):
            raise CodeError(f"There is no question {trigger}: the set has {len(self._queried)}.")
        if self._queried[trigger]:
            raise CodeError(f"Question {trigger} was answered before: an answer counts once.")
        if response is None:
            return
        if not 0 <= response < self._classes:
            raise CodeError(
                f"Question {trigger} was answered {response}: the model has classes 0 to {self._classes - 1}."
            )
        self._queried[trigger] = True
        self._counted += self._assigned[trigger]
        self._agreeing += self._assigned[trigger] & (self._labels[trigger] == response)
        self.queried += 1

    @property
    def agreeing(self) -> np.ndarray:
        """How many answers agree with each recipient's labels: `(n,)`."""
        return self._agreeing.copy()

    @property
    def counted(self) -> np.ndarray:
        """How many answers were to each recipient's own questions: `(n,)`."""
        return self._counted.copy()

    def log10_bounds(self) -> np.ndarray:
        """Decimal logarithms of a bound on the probability that any innocent, however long one goes on asking, gets as
        far as each recipient is: `(n,)`."""
        log_bounds = math.log(max(len(self._agreeing), 1)) - log_e_value(self._agreeing, self._counted, self._classes)
        return np.minimum(log_bounds / math.log(10), 0.0)

    def accused(self) -> np.ndarray:
        """Whose bound is at most alpha: their indices, surest first."""
        bounds = self.log10_bounds()
        order = np.argsort(bounds, kind="stable")
        return order[bounds[order] <= math.log10(self._alpha)]
