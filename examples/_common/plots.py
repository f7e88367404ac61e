"""Plots of traces, of attacks and of what private training leaks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hf_fingerprint import TraceResult
from hf_fingerprint.evaluation import Trial
from hf_fingerprint.evaluation.trials import COLLUSION, COPY, SINGLE


KINDS = {
    COLLUSION: ("#b8a038", "several copies mixed"),
    SINGLE: ("#1a66b0", "one copy attacked"),
    COPY: ("black", "the copy"),
}


def plot_traces(results: Mapping[str, TraceResult], path: Path) -> Path:
    """Plots one panel for each suspect: its scores, and the score above which the bound allows an accusation.

    Results traced with `all_scores` show every recipient's score: keep such a plot private.
    """
    figure, panels = plt.subplots(1, len(results), figsize=(3.6 * len(results), 3.8), squeeze=False)
    for panel, (title, result) in zip(panels[0], results.items(), strict=True):
        scores = sorted(result.scores, key=lambda score: score.recipient)
        colors = ["#c0392b" if score.accused else "#95a5a6" for score in scores]
        panel.bar([score.recipient for score in scores], [score.score for score in scores], color=colors)
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


def plot_frontiers(models: Mapping[str, Sequence[Trial]], path: Path) -> Path:
    """Plots one panel for each model: accuracy against score, with a dot for each suspect.

    Open dots are suspects that accuse nobody; they lie at the bound where their score is withheld.
    """
    figure, panels = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.6), squeeze=False, sharey=True)
    for panel, (name, trials) in zip(panels[0], models.items(), strict=True):
        bound = min(p.threshold for p in trials if p.threshold is not None)
        panel.axvspan(1, bound, color="#c0392b", alpha=0.08, linewidth=0)
        panel.axvline(bound, color="#c0392b", linestyle="--", linewidth=1)
        for kind, (color, label) in KINDS.items():
            for accused in (True, False):
                shown = [p for p in trials if p.kind == kind and p.accused == accused]
                panel.scatter(
                    [max(1.0, bound if p.score is None else p.score) for p in shown],
                    [100 * p.accuracy for p in shown],
                    s=16,
                    alpha=0.6,
                    label=label if accused else None,
                    facecolors=color if accused else "none",
                    edgecolors=color,
                )
        panel.set_xscale("log")
        panel.set_xlim(0.9, 400)
        panel.set_ylim(0, 100)
        panel.set_xticks([1, 3, 10, 30, 100, 300], labels=["1", "3", "10", "30", "100", "300"])
        panel.minorticks_off()
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("evidence left (score)")
    panels[0][0].set_ylabel("accuracy kept, %")
    panels[0][-1].legend(fontsize=7, loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def plot_privacy(models: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> Path:
    """Plots one row for each model: what leaks (SSIM, PSNR, membership) against the released model's accuracy."""
    shown = {
        "ssim": "SSIM of reconstructions",
        "psnr": "PSNR of reconstructions, dB",
        "membership_auc": "membership AUC",
    }
    figure, panels = plt.subplots(len(models), 3, figsize=(10.5, 3.1 * len(models)), squeeze=False)
    for row, (name, trials) in zip(panels, models.items(), strict=True):
        for panel, (key, label) in zip(row, shown.items(), strict=True):
            noisy = [trial for trial in trials if trial["sigma"] is not None]
            panel.plot(
                [100 * trial["accuracy"] for trial in noisy],
                [trial[key] for trial in noisy],
                "o-",
                color="#1a66b0",
                label="partitioned, at several noise strengths",
            )
            for trial in (trial for trial in trials if trial["accuracy"] is None and trial[key] is not None):
                panel.axhline(trial[key], color="#888888", linestyle=":", linewidth=1, label=trial["name"])
            clear = [trial for trial in trials if trial["sigma"] is None and trial["accuracy"] is not None]
            for trial in (trial for trial in clear if trial[key] is not None):
                color = "#c0392b" if trial["ssim"] is not None else "#b8a038"
                panel.scatter(100 * trial["accuracy"], trial[key], marker="s", color=color, label=trial["name"])
            panel.set_xlabel("accuracy of the released model, %")
            panel.set_ylabel(label)
            panel.set_title(name, fontsize=9)
        row[0].set_ylim(0, 1)
        row[2].axhline(0.55, color="black", linestyle="--", linewidth=1)
        row[2].set_ylim(0.45, 0.65)
        row[2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _wrapped(title: str, width: int = 30) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(title, width))
