from dataclasses import replace

from hf_fingerprint.evaluation.coalition_outcomes import Outcome, outcomes
from hf_fingerprint.evaluation.trials import COLLUSION


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
        Outcome("layers", 2, runs=4, all_main_givers=2, somebody=3, caught=4, innocents_accused=1),
        Outcome("average", 2, runs=1, all_main_givers=1, somebody=1, caught=2, innocents_accused=0),
    ]
    assert outcomes([]) == []
