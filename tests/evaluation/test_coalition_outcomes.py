from dataclasses import replace

import pytest

from hf_fingerprint.evaluation.coalition_outcomes import CoalitionOutcome, outcomes
from hf_fingerprint.evaluation.trials import COLLUSION


pytestmark = pytest.mark.integration


def test_runs_are_counted_by_strategy_and_size(evaluation):
    (mixed,) = evaluation.of(COLLUSION)
    small = replace(mixed, attack="layers", scores=(9.0, 2.0), shares=(0.98, 0.02))
    runs = [
        replace(small, caught=(True, True)),
        replace(small, caught=(True, False)),
        replace(small, caught=(False, False), innocents_accused=1),
        replace(small, caught=(False, True)),
        replace(small, attack="average", caught=(True, True)),
    ]

    assert outcomes(runs) == [
        CoalitionOutcome("layers", 2, runs=4, all_main_contributors=2, anybody=3, caught=4, innocents_accused=1),
        CoalitionOutcome("average", 2, runs=1, all_main_contributors=1, anybody=1, caught=2, innocents_accused=0),
    ]
    assert outcomes([]) == []
