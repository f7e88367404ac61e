"""Which budget a mark has, and how much of it a measurement spends."""

from dataclasses import replace

import numpy as np
import pytest

from hf_fingerprint import FingerprintConfig
from hf_fingerprint.errors import CodeError
from hf_fingerprint.registration.output_budget import OutputBudget, kept_budget, limiting_measure, output_budgets
from hf_fingerprint.registration.output_comparison import OutputComparison
from hf_fingerprint.vault import Calibration


DEFAULT = (OutputBudget(1e-3, 0.995), OutputBudget(1e-4))


def measured(kl: float, agreeing: int = 1000, low: float | None = 1.0) -> OutputComparison:
    predicted = None if low is None else ((1 + low) / 2, low)
    decisions = 0 if low is None else 1000
    return OutputComparison(kl, (kl, kl), 0.0, 1000, decisions, agreeing if decisions else 0, predicted)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FingerprintConfig(), DEFAULT),
        (FingerprintConfig(coalition=3), DEFAULT),
        (FingerprintConfig(max_kl=1e-3), (OutputBudget(1e-3),)),
        (FingerprintConfig(max_kl=2e-4, min_agreement=0.99), (OutputBudget(2e-4, 0.99),)),
        (FingerprintConfig(min_agreement=0.999), (OutputBudget(1e-3, 0.999),)),
        (FingerprintConfig(amplitude=0.01), (OutputBudget(1e-3),)),
    ],
    ids=str,
)
def test_what_is_given_is_the_only_budget_and_what_is_not_is_the_default(config, expected):
    assert output_budgets(config, "single_label") == expected


def test_features_make_no_decisions_that_could_guard_a_larger_divergence():
    assert output_budgets(FingerprintConfig(), "features") == (OutputBudget(1e-4),)
    assert output_budgets(FingerprintConfig(max_kl=1e-3), "features") == (OutputBudget(1e-3),)
    with pytest.raises(CodeError, match=r"kind features makes none: give `max_kl` instead\.$"):
        output_budgets(FingerprintConfig(min_agreement=0.99), "features")


def test_twice_the_amplitude_spends_four_times_as_much_of_either_part():
    budget = OutputBudget(1e-3, 0.995)
    divergence, decisions = measured(2e-4), measured(1e-6, low=0.998)

    assert budget.spent(divergence) == pytest.approx(0.2)
    assert budget.spent(replace(divergence, kl=8e-4)) == pytest.approx(0.8)
    assert budget.spent(decisions) == pytest.approx(0.16)
    assert budget.spent(measured(1e-6, low=0.996)) == pytest.approx(0.64)
    assert budget.whole_kl(decisions) == pytest.approx(1e-6 / 0.16)
    assert OutputBudget(1e-3).spent(decisions) == pytest.approx(1e-3)
    assert OutputBudget(1e-3).whole_kl(measured(0.0)) == 1e-3


def test_the_count_binds_where_it_is_worse_than_the_prediction():
    assert OutputBudget(1e-3, 0.995).spent(measured(1e-6, agreeing=990, low=0.999)) == pytest.approx(4)


def test_an_output_without_decisions_exceeds_any_agreement():
    assert OutputBudget(1e-3, 0.995).spent(measured(1e-6, low=None)) == np.inf


def test_the_larger_budget_is_recorded_where_it_is_kept_and_the_smaller_one_elsewhere():
    assert kept_budget(DEFAULT, measured(5e-5, low=0.996)) == DEFAULT[0]
    assert kept_budget(DEFAULT, measured(9e-4, low=0.996)) == DEFAULT[0]
    assert kept_budget(DEFAULT, measured(9e-5, low=0.98)) == DEFAULT[1]


def test_the_record_says_what_keeps_the_mark_from_being_stronger():
    found = Calibration("synthetic", 1000, 1e-3, 8e-4, 0.999, "single_label", min_agreement=0.995)

    assert limiting_measure(replace(found, predicted_agreement_low=0.998)) == "kl"
    assert limiting_measure(replace(found, predicted_agreement_low=0.9952)) == "agreement"
    assert limiting_measure(replace(found, kl=1e-4, predicted_agreement_low=0.998)) == "amplitude"
    assert limiting_measure(replace(found, min_agreement=None)) == "kl"
    assert limiting_measure(replace(found, eps=0.01)) is None
    assert limiting_measure(Calibration("none", 0, 1e-3, None, None)) is None
