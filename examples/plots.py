"""Pictures of what was found."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hf_fingerprint import TraceResult


def plot_traces(results: Mapping[str, TraceResult], path: Path) -> Path:
    """One panel a suspect: every recipient's score, and the score from which on the bound allows an accusation."""
    figure, panels = plt.subplots(1, len(results), figsize=(3.6 * len(results), 3.8), squeeze=False)
    for panel, (title, result) in zip(panels[0], results.items(), strict=True):
        scores = sorted(result.scores, key=lambda score: score.recipient)
        colours = ["#c0392b" if score.accused else "#95a5a6" for score in scores]
        panel.bar([score.recipient for score in scores], [score.score for score in scores], color=colours)
        if result.rounds:
            panel.axhline(result.threshold, color="black", linestyle="--", linewidth=1)
            panel.annotate(
                "accused above",
                (0.98, result.threshold),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
        panel.set_yscale("symlog", linthresh=10)
        panel.set_ylim(-10, 400)
        panel.set_yticks([-5, 0, 5, 10, 30, 100, 300], labels=["-5", "0", "5", "10", "30", "100", "300"])
        panel.minorticks_off()
        panel.set_title(_wrapped(title), fontsize=9)
        panel.tick_params(axis="x", labelrotation=45, labelsize=8)
        panel.axhline(0, color="black", linewidth=0.5)
    panels[0][0].set_ylabel("score (an innocent's has deviation 1)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _wrapped(title: str, width: int = 30) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(title, width))
