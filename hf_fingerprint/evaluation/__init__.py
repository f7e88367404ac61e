"""What a model's fingerprint withstands: attacks run over their sweeps, suspects judged, innocents counted."""

from hf_fingerprint.evaluation.data import Data, load_data
from hf_fingerprint.evaluation.evaluate import Evaluation, evaluate
from hf_fingerprint.evaluation.frontier import Cost, cheapest, frontier
from hf_fingerprint.evaluation.planning import choose
from hf_fingerprint.evaluation.report import write_report
from hf_fingerprint.evaluation.testbed import Judgement, Scene
from hf_fingerprint.evaluation.trials import Point


__all__ = [
    "Cost",
    "Data",
    "Evaluation",
    "Judgement",
    "Point",
    "Scene",
    "cheapest",
    "choose",
    "evaluate",
    "frontier",
    "load_data",
    "write_report",
]
