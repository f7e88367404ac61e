"""Evaluation of a fingerprint's robustness: runs attacks over their sweeps, traces the suspects, counts innocents."""

from hf_fingerprint.evaluation.data import EvaluationData, load_data
from hf_fingerprint.evaluation.evaluate import Evaluation, evaluate
from hf_fingerprint.evaluation.frontier import AttackCost, cheapest_escape, frontier
from hf_fingerprint.evaluation.planning import select_attacks
from hf_fingerprint.evaluation.report import write_report
from hf_fingerprint.evaluation.testbed import Testbed, Verdict
from hf_fingerprint.evaluation.trials import Trial


__all__ = [
    "AttackCost",
    "Evaluation",
    "EvaluationData",
    "Testbed",
    "Trial",
    "Verdict",
    "cheapest_escape",
    "evaluate",
    "frontier",
    "load_data",
    "select_attacks",
    "write_report",
]
