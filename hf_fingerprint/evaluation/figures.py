"""The five pictures of an evaluation: each attack's path, the frontier, coalitions, innocents, layers."""

import math
from collections.abc import Iterable

from hf_fingerprint.evaluation.charts import MIN_SCORE, Axis, Chart, count_axis, heatmap, score_axis, share_axis
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import evidence_score, format_score
from hf_fingerprint.evaluation.frontier import frontier as pareto_front
from hf_fingerprint.evaluation.testbed import BINS
from hf_fingerprint.evaluation.trials import COLLUSION, Trial


FOLLOW_UP_SEPARATOR = "-then-"
MIN_ACCURACY_KEPT = 0.9  # of the accuracy above chance: what a thief may want to keep


def attacks(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each attack on a single copy: accuracy kept against evidence left, along its sweep."""
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


def frontier(evaluation: Evaluation) -> str:
    """All suspects, and the best that a thief can have: with one copy, and with several."""
    chart = Chart(
        "what it costs to get under the accusation bound",
        score_axis("evidence left (score of the surest accusation)", _highest(evaluation)),
        _accuracy_axis(evaluation),
        520,
        330,
    )
    bound = _lowest_threshold(evaluation)
    _draw_bound(chart, bound)
    groups = {
        "single": [p for p in evaluation.trials if p.colluders == 1],
        "several": evaluation.of(COLLUSION),
    }
    for group, trials in groups.items():
        best = pareto_front(trials)
        chart.line([(_shown_score(p, bound), p.accuracy) for p in reversed(best)], f"front {group}", stepped=True)
        for trial in trials:
            chart.dot(_shown_score(trial, bound), trial.accuracy, f"{_css_class(trial)} {group}", _describe(trial))
    return chart.svg()


def follow_ups(evaluation: Evaluation) -> list[str]:
    """What was done to the coalitions' mixes, in the order of the colours."""
    return list(dict.fromkeys(_split_name(trial)[1] for trial in evaluation.of(COLLUSION)))


def coalitions(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each strategy: the share of the recipients who are caught against the coalition's size."""
    mixed = evaluation.of(COLLUSION)
    after = follow_ups(evaluation)
    sizes = sorted({trial.colluders for trial in mixed})
    found = []
    for strategy in dict.fromkeys(_split_name(trial)[0] for trial in mixed):
        chart = Chart(
            f"{strategy}: recipients caught", count_axis("copies mixed", sizes), share_axis("recipients caught")
        )
        for place, follow_up in enumerate(after):
            trials = [trial for trial in mixed if _split_name(trial) == (strategy, follow_up)]
            runs = [[sum(p.caught) / size for p in trials if p.colluders == size] for size in sizes]
            means = [(size, sum(run) / len(run)) for size, run in zip(sizes, runs, strict=True) if run]
            chart.line(means, f"series s{place % 4}")
            for p in trials:
                chart.dot(
                    p.colluders,
                    sum(p.caught) / p.colluders,
                    f"mark s{place % 4}",
                    _describe(p),
                    6.5 - 1.4 * min(place, 3),
                )
        found.append((strategy, chart.svg()))
    return found


def innocents(evaluation: Evaluation) -> str:
    """How often innocents' scores were what they were, over all suspects, against the bound; of an evaluation with all
    scores."""
    read = [trial for trial in evaluation.trials if trial.threshold is not None]
    first, width, count = BINS
    totals = [sum(trial.histogram[i] for trial in read) for i in range(count)]
    decades = math.ceil(math.log10(30 * max([*totals, 10])))  # with room for words above the bars
    top = max((trial.highest_innocent or 0.0 for trial in read), default=0.0)
    plain = max((trial.unaligned[1] or 0.0 for trial in read), default=0.0)
    lowest, highest = -6.0, max(9.0, top + 1, (_lowest_threshold(evaluation) or 0.0) + 5)
    chart = Chart(
        "innocents' scores against the bound",
        _linear_axis("score of an innocent, in standard deviations", lowest, highest),
        _log_axis("innocents scored", decades),
        520,
        300,
    )
    for i, total in enumerate(totals):
        low = first + i * width
        if total and lowest <= low < highest:
            title = f"{total:,} innocents scored {low:g} to {low + width:g}"
            chart.bar(low, low + width, total, "bar", title)
    bound = _lowest_threshold(evaluation)
    if bound is not None:
        text = f"the lowest score that accuses in any trace here: {bound:.2f}"
        chart.vertical_line(bound, "bound", "accused from here on", text)
    chart.vertical_line(top, "highest", f"highest {top:.1f}", f"the highest innocent: {top:.2f}", before=True)
    if plain != top:
        text = f"the highest innocent if channels are not put in order: {plain:.2f}"
        chart.vertical_line(plain, "highest", f"without alignment {plain:.1f}", text, before=True, row=1)
    return chart.svg()


def layers(evaluation: Evaluation) -> str:
    """Where the evidence is: in a copy as issued, and after the hardest of each attack that leaves the model most of
    what it can do; of those whose evidence is not withheld. Empty if there is none."""
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
    return heatmap(
        "evidence by layer",
        [name for name, _ in rows],
        evaluation.carriers,
        [values for _, values in rows],
        max(copy.layers, default=1.0),
    )


def _split_name(trial: Trial) -> tuple[str, str]:
    """A collusion's strategy, and what followed."""
    strategy, _, after = trial.attack.partition(FOLLOW_UP_SEPARATOR)
    return strategy, after or "nothing more"


def _lowest_threshold(evaluation: Evaluation) -> float | None:
    """The lowest score from which on any trace accuses in its first round."""
    return min((p.threshold for p in evaluation.trials if p.threshold is not None), default=None)


def _draw_bound(chart: Chart, bound: float | None) -> None:
    if bound is not None:
        chart.shade(MIN_SCORE, bound, "free", "under the bound: nobody is accused")
        chart.vertical_line(bound, "bound", "bound", f"from a score of {bound:.2f} on a recipient is accused")


def _shown_score(trial: Trial, bound: float | None) -> float:
    """Where a point lies: at its score, or at the bound if that is withheld."""
    return (MIN_SCORE if bound is None else bound) if trial.score is None else trial.score


def _highest(evaluation: Evaluation) -> float:
    return max(trial.score or 0.0 for trial in evaluation.trials)


def _accuracy_axis(evaluation: Evaluation) -> Axis:
    values = [trial.accuracy for trial in evaluation.trials]
    return share_axis("accuracy kept", min(values), max(values))


def _css_class(trial: Trial) -> str:
    return "accused" if trial.accused else "escaped"


def _describe(trial: Trial) -> str:
    """A point in a sentence."""
    who = "nobody is accused"
    if trial.accused:
        who = f"{sum(trial.caught)} of {trial.colluders} accused" if trial.colluders > 1 else "accused"
    main = sum(trial.main_contributors)
    if main < trial.colluders:
        who += f", {sum(map(min, trial.main_contributors, trial.caught))} of the {main} who gave a twentieth or more"
    return f"{trial.what}: accuracy {trial.accuracy:.1%}, score {format_score(trial.score)}, {who}"


def _linear_axis(label: str, lowest: float, highest: float) -> Axis:
    ticks: Iterable[int] = range(math.ceil(lowest / 2) * 2, math.floor(highest) + 1, 2 if highest < 20 else 10)
    return Axis(label, lambda x: (x - lowest) / (highest - lowest), tuple((float(t), f"{t:g}") for t in ticks))


def _log_axis(label: str, decades: int) -> Axis:
    """A logarithmic axis from a half to so many powers of ten."""
    low = math.log10(0.5)
    ticks = tuple((10.0**i, f"{10**i:,}" if i < 4 else f"1e{i}") for i in range(decades + 1))
    return Axis(label, lambda n: (math.log10(max(n, 0.5)) - low) / (decades - low), ticks)
