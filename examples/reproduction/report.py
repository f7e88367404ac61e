"""Makes the reproduction's tables and plots from its records."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from examples._common.results import Table
from examples.reproduction.models import architectures


Record = dict[str, Any]
COLUMNS = ("deepmarks, 0.85 and AND", "deepmarks, soft decoder", "toolbox", "spread")
COLORS = ("#c0392b", "#e67e22", "#7f8c8d", "#2471a3")
ATTACKS = {
    "none": "as trained",
    "averaged": "average of {:.0f} copies",
    "pruned": "pruned to {:.0%}",
    "fine-tuned": "fine-tuned by an attacker, AdamW {:.0e}",
    "overwritten": "overwritten by another owner's mark",
}


def make_tables(records: list[Record], out: Path, data: str) -> list[Table]:
    """Returns the tables and saves one plot for each model.

    Args:
        records (`list`): the rows of all tasks.
        out (`Path`): the folder of the plots.
        data (`str`): the name of the images.
    """
    groups = defaultdict(list)
    for row in records:
        groups[row["model"], row["mode"]].append(row)
    found = []
    for (model, mode), rows in groups.items():
        title = f"{architectures()[model].title}, {'from scratch' if mode == 'scratch' else mode}"
        found.append(section(f"{model}-{mode}", title, rows))
        plot(title, rows, out / f"{model}-{mode}.png")
    return [*found, verdicts(groups, data)]


def section(name: str, title: str, rows: list[Record]) -> Table:
    """Returns the table of one model."""
    unmarked = [row for row in rows if row["arm"] == "unmarked"]
    plain = np.mean([row["accuracy"] for row in unmarked])
    changes = (accuracy_cell(rows, column) for column in COLUMNS)
    lines = [("accuracy, marked less unmarked, points (95 % interval)", *changes)]
    for attack, level in attacks_in(rows):
        cells = (cell(pick(rows, column, attack, level)) for column in COLUMNS)
        lines.append((ATTACKS[attack].format(level), *cells))
    heading = f"{title} ({len(unmarked)} seeds; unmarked accuracy {plain:.2%})"
    return Table(name, heading, ("suspect", *COLUMNS), tuple(lines))


def attacks_in(rows: Iterable[Record]) -> list[tuple[str, float]]:
    """Returns all attacks and their levels, in the table's order."""
    found = {(row["attack"], row["level"]) for row in rows}
    return sorted(found, key=lambda pair: (list(ATTACKS).index(pair[0]), pair[1]))


def pick(rows: Iterable[Record], arm: str, attack: str, level: float) -> list[Record]:
    """Returns the rows of one cell, one for each seed."""
    return [row for row in rows if (row["arm"], row["attack"], row["level"]) == (arm, attack, level)]


def difference(rows: list[Record], arm: str) -> tuple[float, float, float]:
    """Returns mean and 95 % interval (Student's t over seeds) of the change in accuracy by the mark, in points."""
    plain = {row["seed"]: row["accuracy"] for row in rows if row["arm"] == "unmarked"}
    marked = pick(rows, arm, "none", 0)
    found = np.array([100 * (row["accuracy"] - plain[row["seed"]]) for row in marked])
    mean = float(found.mean())
    if len(found) < 2:
        return mean, -np.inf, np.inf
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return mean, mean - half, mean + half


def accuracy_cell(rows: list[Record], arm: str) -> str:
    """Returns the difference in accuracy, formatted."""
    mean, low, high = difference(rows, arm)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" if np.isfinite(low) else f"{mean:+.2f} (one seed)"


def cell(rows: list[Record]) -> str:
    """Returns the colluders named over all seeds, and the wrong bits."""
    if not rows:
        return "-"
    wrong = np.mean([row["wrong"] for row in rows])
    if rows[0]["arm"] == "toolbox":
        return f"{wrong:.1f} of {rows[0]['bits']} bits wrong"
    named = f"{sum(row['caught'] for row in rows)}/{sum(row['colluders'] for row in rows)}"
    innocents = sum(row["innocents"] for row in rows)
    named += f", {innocents} innocent" if innocents else ""
    if rows[0]["attack"] == "averaged":
        return named
    if rows[0]["arm"] == "spread":
        return f"{named}; score {np.mean([row['score'] for row in rows]):.0f}, {wrong / rows[0]['bits']:.1%} wrong"
    return f"{named}; {wrong:.1f} of {rows[0]['bits']} wrong"


def verdicts(groups: dict[tuple[str, str], list[Record]], data: str) -> Table:
    """Returns whether each row of the table keeps its bound."""
    lines, worse, innocents = [], [], defaultdict(int)
    wrong: list[str] = []
    missed: list[str] = []
    for (model, mode), rows in groups.items():
        for column in COLUMNS:
            if column == "deepmarks, soft decoder":
                continue
            mean, low, high = difference(rows, column)
            within = abs(mean) <= 0.1 or (low <= 0 <= high and low >= -0.5 and high <= 0.5)
            verdict = "within the bound" if within else "NOT within the bound"
            lines.append((f"accuracy, {model}, {mode}, {column.split(',')[0]}", f"{verdict} ({mean:+.2f})"))
        for attack, level in attacks_in(rows):
            shares = {}
            for column in COLUMNS:
                found = pick(rows, column, attack, level)
                if column.startswith("deepmarks") and attack == "none":
                    wrong += [f"{model}, {mode}, seed {r['seed']}: {r['wrong']}" for r in found if r["wrong"]]
                if column.startswith("deepmarks") and attack == "averaged":
                    missed += [f"{model}, {mode}, {level:.0f} copies" for r in found if r["caught"] < r["colluders"]]
                innocents[column] += sum(row.get("innocents", 0) for row in found)
                if found and column != "toolbox":
                    shares[column] = sum(row["caught"] for row in found) / sum(row["colluders"] for row in found)
            if "spread" in shares and shares["spread"] < max(shares.values()):
                worse.append(f"{model}, {mode}, {ATTACKS[attack].format(level)}: {shares}")
    lines += [
        ("bits wrong in `deepmarks` as trained", "; ".join(dict.fromkeys(wrong)) or "none"),
        ("averages of which `deepmarks` misses a colluder", "; ".join(dict.fromkeys(missed)) or "none"),
        ("rows in which `spread` names fewer than `deepmarks`", "; ".join(worse) or "none"),
        ("innocents named, over all rows", ", ".join(f"{innocents[c]} by {c}" for c in COLUMNS)),
    ]
    note = (
        f"Data: {data}, not the paper's MNIST and CIFAR-10. (31,6,1), 31 users; `spread`: 1,000 recipients, alpha "
        "1e-6. Cells: colluders named / colluders, over all seeds attacked; innocents named, if any; bits wrong."
    )
    return Table("verdicts", "Results by row", ("row", "result"), tuple(lines), (note,))


def plot(title: str, rows: list[Record], path: Path) -> Path:
    """Plots the share of colluders named and the accuracy against each attack's strength."""
    shown = [attack for attack in ("averaged", "pruned", "fine-tuned") if any(r["attack"] == attack for r in rows)]
    figure, panels = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3.6), squeeze=False, sharey=True)
    for panel, attack in zip(panels[0], shown, strict=True):
        levels = sorted({row["level"] for row in rows if row["attack"] == attack})
        for column, color, shift in zip(COLUMNS, COLORS, (-0.06, -0.02, 0, 0.02), strict=True):
            cells = [pick(rows, column, attack, level) for level in levels]
            if column == "toolbox" or not all(cells):
                continue
            share = [sum(r["caught"] for r in c) / sum(r["colluders"] for r in c) for c in cells]
            panel.plot(np.arange(len(levels)) + shift, share, "o-", color=color, label=column, markersize=4)
        kept = [np.mean([r["accuracy"] for r in rows if (r["attack"], r["level"]) == (attack, v)]) for v in levels]
        panel.plot(range(len(levels)), kept, ":", color="black", label="accuracy")
        panel.set_xticks(range(len(levels)), [ATTACKS[attack].format(level).split(" ", 1)[-1] for level in levels])
        panel.tick_params(axis="x", labelrotation=20, labelsize=7)
        panel.set_ylim(-0.05, 1.08)
        panel.set_title(attack, fontsize=9)
    panels[0][0].set_ylabel("share of colluders named")
    panels[0][0].legend(fontsize=7, loc="lower left")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
