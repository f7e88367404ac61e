"""What a mark may change in the output: the largest divergence, and the smallest share of unchanged decisions.

Both grow with the amplitude in a known way, the divergence with its square and the share of reversed decisions in
proportion. So one number says how much of a budget is spent, in units of the squared amplitude.

By default the mark is as strong as a divergence of 1e-3 nats and an agreement of 99.5 % allow. Where they allow less
than 1e-4 nats, or there are no decisions, a divergence of 1e-4 is the budget. Synthetic images are often close to a
decision boundary, where the agreement is lower than on photographs, so a model may get the smaller budget for them
alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_fingerprint.config import MAX_KL, MIN_AGREEMENT, SMALL_MAX_KL, FingerprintConfig
from hf_fingerprint.errors import CodeError
from hf_fingerprint.registration.output_comparison import OutputComparison
from hf_fingerprint.vault import Calibration


CAPPED_BELOW = 0.5  # a mark that spends less has the largest amplitude everywhere; the search stops above it


@dataclass(frozen=True)
class OutputBudget:
    """A budget on the output.

    Attributes:
        max_kl (`float`): the largest mean divergence, in nats.
        min_agreement (`float`, *optional*): the smallest share of unchanged decisions.
    """

    max_kl: float
    min_agreement: float | None = None

    def __str__(self) -> str:
        decisions = "" if self.min_agreement is None else f" and an agreement of {self.min_agreement:.2%}"
        return f"a KL of {self.max_kl:.1e}{decisions}"

    def kl_share(self, kl: float) -> float:
        """The share of the budget that a divergence spends."""
        return kl / self.max_kl

    def agreement_share(self, agreement: float | None, predicted_low: float | None) -> float:
        """The share that reversed decisions spend, in units of the squared amplitude: by count, or by the prediction's
        limit if that is lower. Infinite if there are no decisions."""
        if self.min_agreement is None:
            return 0.0
        known = [each for each in (agreement, predicted_low) if each is not None]
        return ((1 - min(known)) / (1 - self.min_agreement)) ** 2 if known else float("inf")

    def spent(self, found: OutputComparison) -> float:
        """The share of the budget that a mark spends, in units of the squared amplitude; above 1 if it exceeds it."""
        low = None if found.predicted_agreement is None else found.predicted_agreement[1]
        return max(self.kl_share(found.kl), self.agreement_share(found.agreement, low))

    def whole_kl(self, found: OutputComparison) -> float:
        """The divergence at which this mark, made stronger, would spend the whole budget."""
        spent = self.spent(found)
        return found.kl / spent if spent else self.max_kl


def kept_budget(budgets: Sequence[OutputBudget], found: OutputComparison) -> OutputBudget:
    """The first budget that a mark keeps, or the one that it exceeds least."""
    return next((each for each in budgets if each.spent(found) <= 1), min(budgets, key=lambda b: b.spent(found)))


def output_budgets(config: FingerprintConfig, kind: str | None = None) -> tuple[OutputBudget, ...]:
    """The budgets of which a mark must keep one, the largest first.

    Args:
        config ([`FingerprintConfig`]): the settings.
        kind (`str`, *optional*): the kind of output, one of `KINDS`; `None` if it is not measured.

    Raises:
        [`CodeError`]: if an agreement is requested of an output that makes no decisions.
    """
    if config.min_agreement is not None and kind == "features":
        raise CodeError(
            "`min_agreement` is a share of decisions, and an output of kind features makes none: give `max_kl` "
            "instead."
        )
    if config.max_kl is not None or config.amplitude is not None or config.min_agreement is not None:
        return (OutputBudget(config.max_kl or MAX_KL, config.min_agreement),)
    small = OutputBudget(SMALL_MAX_KL)
    return (small,) if kind == "features" else (OutputBudget(MAX_KL, MIN_AGREEMENT), small)


def limiting_measure(found: Calibration) -> str | None:
    """What keeps a recorded mark from being stronger: `"kl"`, `"agreement"` or `"amplitude"`, the largest that any
    budget allows; `None` if it was fixed or not measured."""
    if found.eps is not None or found.kl is None:
        return None
    budget = OutputBudget(found.max_kl, found.min_agreement)
    kl = budget.kl_share(found.kl)
    decisions = budget.agreement_share(found.agreement, found.predicted_agreement_low)
    if max(kl, decisions) < CAPPED_BELOW:
        return "amplitude"
    return "agreement" if decisions > kl else "kl"
