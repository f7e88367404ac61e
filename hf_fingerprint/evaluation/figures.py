"""The figures of an evaluation: each attack's sweep, the frontier, coalitions, innocents, layers."""

import math
from collections.abc import Iterable

from hf_fingerprint.evaluation.charts import MIN_SCORE, Axis, Chart, count_axis, heatmap, score_axis, share_axis
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import evidence_score, format_score
from hf_fingerprint.evaluation.frontier import frontier as pareto_front
from hf_fingerprint.evaluation.testbed import BINS
from hf_fingerprint.evaluation.trials import COLLUSION, Trial


FOLLOW_UP_SEPARATOR = "-then-"
MIN_ACCURACY_KEPT = 0.9  # share of the accuracy above chance: below it a suspect is of little use


def draw_attacks(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each attack on a single copy, its name and a chart of accuracy against evidence along its sweep."""
    copy = evaluation.copy
    bound, highest, axis = _lowest_threshold(evaluation), _highest(evaluation), _accuracy_axis(evaluation)
    found = []
    for name, trials in evaluation.sweeps.items():
        chart = Chart(f"{name}: accuracy against evidence", score_axis("evidence left (score)", highest), axis)
        _draw_bound(chart, bound)
        path = [copy, *trials]
        chart.line([(_shown_score(p, bound), p.accuracy) for p in path], "path")
        for trial in path:
            chart.dot(_shown_score(trial, bound), trial.accuracy, _css_class(trial), _describe(trial))
        found.append((name, chart.svg()))
    return found


def draw_frontier(evaluation: Evaluation) -> str:
    """A chart of all suspects, with the Pareto fronts of attacks on one copy and of collusions."""
    evidence = score_axis("evidence left (highest score)", _highest(evaluation))
    chart = Chart("accuracy against evidence, all suspects", evidence, _accuracy_axis(evaluation), 520, 330)
    bound = _lowest_threshold(evaluation)
    _draw_bound(chart, bound)
    groups = {"single": [p for p in evaluation.trials if p.colluders == 1], "several": evaluation.of(COLLUSION)}
    for group, trials in groups.items():
        best = pareto_front(trials)
        chart.line([(_shown_score(p, bound), p.accuracy) for p in reversed(best)], f"front {group}", stepped=True)
        for trial in trials:
            chart.dot(_shown_score(trial, bound), trial.accuracy, f"{_css_class(trial)} {group}", _describe(trial))
    return chart.svg()


def follow_ups(evaluation: Evaluation) -> list[str]:
    """What followed the collusions, in the order of the colors."""
    return list(dict.fromkeys(_split_name(trial)[1] for trial in evaluation.of(COLLUSION)))


def draw_coalitions(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each strategy, its name and a chart of the share of colluders caught against the coalition's size."""
    mixed = evaluation.of(COLLUSION)
    after = follow_ups(evaluation)
    sizes = sorted({trial.colluders for trial in mixed})
    found = []
    for strategy in dict.fromkeys(_split_name(trial)[0] for trial in mixed):
        axes = count_axis("copies mixed", sizes), share_axis("colluders caught")
        chart = Chart(f"{strategy}: colluders caught", *axes)
        for place, follow_up in enumerate(after):
            trials = [trial for trial in mixed if _split_name(trial) == (strategy, follow_up)]
            runs = [[sum(p.caught) / size for p in trials if p.colluders == size] for size in sizes]
            means = [(size, sum(run) / len(run)) for size, run in zip(sizes, runs, strict=True) if run]
            chart.line(means, f"series s{place % 4}")
            for p in trials:
                radius, share = 6.5 - 1.4 * min(place, 3), sum(p.caught) / p.colluders
                chart.dot(p.colluders, share, f"mark s{place % 4}", _describe(p), radius)
        found.append((strategy, chart.svg()))
    return found


def draw_innocents(evaluation: Evaluation) -> str:
    """A histogram of innocents' scores over all suspects, with the bound. Needs an evaluation with all scores."""
    read = [trial for trial in evaluation.trials if trial.threshold is not None]
    first, width, count = BINS
    totals = [sum(trial.histogram[i] for trial in read) for i in range(count)]
    decades = math.ceil(math.log10(30 * max([*totals, 10])))  # leaves space for labels above the bars
    top = max((trial.highest_innocent or 0.0 for trial in read), default=0.0)
    plain = max((trial.unaligned[1] or 0.0 for trial in read), default=0.0)
    lowest, highest = -6.0, max(9.0, top + 1, (_lowest_threshold(evaluation) or 0.0) + 5)
    axis = _linear_axis("score of an innocent, in standard deviations", lowest, highest)
    chart = Chart("innocents' scores against the bound", axis, _log_axis("innocents scored", decades), 520, 300)
    for i, total in enumerate(totals):
        low = first + i * width
        if total and lowest <= low < highest:
            chart.bar(low, low + width, total, "bar", f"{total:,} innocents scored {low:g} to {low + width:g}")
    bound = _lowest_threshold(evaluation)
    if bound is not None:
        text = f"the lowest accusing score of any trace here: {bound:.2f}"
        chart.vertical_line(bound, "bound", "accused from here", text)
    chart.vertical_line(top, "highest", f"highest {top:.1f}", f"the highest innocent: {top:.2f}", before=True)
    if plain != top:
        text = f"the highest innocent if channels are not aligned: {plain:.2f}"
        chart.vertical_line(plain, "highest", f"without alignment {plain:.1f}", text, before=True, row=1)
    return chart.svg()


def draw_layers(evaluation: Evaluation) -> str:
    """A heatmap of evidence by layer: of the copy as issued, and after each attack at its strongest that keeps most of
    the accuracy. Empty if all evidence is withheld."""
    copy = evaluation.copy
    least = evaluation.chance + MIN_ACCURACY_KEPT * (copy.accuracy - evaluation.chance)
    rows = [("as issued", copy.layers)] if copy.layers else []
    for name, trials in evaluation.sweeps.items():
        usable = [trial for trial in trials if trial.accuracy >= least and trial.layers]
        if usable:
            hardest = min(usable, key=evidence_score)
            rows.append((f"{name} {hardest.strength:g}", hardest.layers))
    if not rows:
        return ""
    names, values = zip(*rows, strict=True)
    return heatmap("evidence by layer", names, evaluation.carriers, values, max(copy.layers, default=1.0))


def _split_name(trial: Trial) -> tuple[str, str]:
    """A collusion's strategy and its follow-up."""
    strategy, _, after = trial.attack.partition(FOLLOW_UP_SEPARATOR)
    return strategy, after or "no follow-up"


def _lowest_threshold(evaluation: Evaluation) -> float | None:
    """The lowest score that accuses in the first round of any trace."""
    return min((p.threshold for p in evaluation.trials if p.threshold is not None), default=None)


def _draw_bound(chart: Chart, bound: float | None) -> None:
    if bound is not None:
        chart.shade(MIN_SCORE, bound, "free", "under the bound: nobody is accused")
        chart.vertical_line(bound, "bound", "bound", f"a recipient is accused from a score of {bound:.2f}")


def _shown_score(trial: Trial, bound: float | None) -> float:
    """The score to draw: the trial's own, or the bound if it is withheld."""
    return (MIN_SCORE if bound is None else bound) if trial.score is None else trial.score


def _highest(evaluation: Evaluation) -> float:
    return max(trial.score or 0.0 for trial in evaluation.trials)


def _accuracy_axis(evaluation: Evaluation) -> Axis:
    values = [trial.accuracy for trial in evaluation.trials]
    return share_axis("accuracy kept", min(values), max(values))


def _css_class(trial: Trial) -> str:
    return "accused" if trial.accused else "escaped"


def _describe(trial: Trial) -> str:
    """A trial in one sentence."""
    who = "nobody is accused"
    if trial.accused:
        who = f"{sum(trial.caught)} of {trial.colluders} accused" if trial.colluders > 1 else "accused"
    main = sum(trial.main_contributors)
    if main < trial.colluders:
        who += f", {sum(map(min, trial.main_contributors, trial.caught))} of {main} main contributors"
    return f"{trial.what}: accuracy {trial.accuracy:.1%}, score {format_score(trial.score)}, {who}"


def _linear_axis(label: str, lowest: float, highest: float) -> Axis:
    ticks: Iterable[int] = range(math.ceil(lowest / 2) * 2, math.floor(highest) + 1, 2 if highest < 20 else 10)
    return Axis(label, lambda x: (x - lowest) / (highest - lowest), tuple((float(t), f"{t:g}") for t in ticks))


def _log_axis(label: str, decades: int) -> Axis:
    """A logarithmic axis from 0.5 to `10**decades`."""
    low = math.log10(0.5)
    ticks = tuple((10.0**i, f"{10**i:,}" if i < 4 else f"1e{i}") for i in range(decades + 1))
    return Axis(label, lambda n: (math.log10(max(n, 0.5)) - low) / (decades - low), ticks)
