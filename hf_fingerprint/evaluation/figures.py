"""The five pictures of an evaluation: each attack's path, the frontier, coalitions, innocents, layers."""

import math
from collections.abc import Iterable

from hf_fingerprint.evaluation.charts import LEAST_SCORE, Axis, Chart, counts, heatmap, scores, shares
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import evidence, score_in_words
from hf_fingerprint.evaluation.frontier import frontier as front
from hf_fingerprint.evaluation.testbed import BINS
from hf_fingerprint.evaluation.trials import COLLUSION, Point


FOLLOWED_BY = "-then-"
KEPT = 0.9  # of the accuracy above chance: what a thief may want to keep


def attacks(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each attack on a single copy: accuracy kept against evidence left, along its sweep."""
    copy = evaluation.copy
    bound, highest, axis = _bound(evaluation), _highest(evaluation), _accuracy(evaluation)
    found = []
    for name, points in evaluation.sweeps.items():
        chart = Chart(f"{name}: accuracy against evidence", scores("evidence left (score)", highest), axis)
        _draw_bound(chart, bound)
        path = [copy, *points]
        chart.line([(_drawn_at(p, bound), p.accuracy) for p in path], "path")
        for point in path:
            chart.dot(_drawn_at(point, bound), point.accuracy, _kind(point), _told(point))
        found.append((name, chart.svg()))
    return found


def frontier(evaluation: Evaluation) -> str:
    """All suspects, and the best that a thief can have: with one copy, and with several."""
    chart = Chart(
        "what it costs to get under the accusation bound",
        scores("evidence left (score of the surest accusation)", _highest(evaluation)),
        _accuracy(evaluation),
        520,
        330,
    )
    bound = _bound(evaluation)
    _draw_bound(chart, bound)
    groups = {
        "single": [p for p in evaluation.points if p.colluders == 1],
        "several": evaluation.of(COLLUSION),
    }
    for group, points in groups.items():
        best = front(points)
        chart.line([(_drawn_at(p, bound), p.accuracy) for p in reversed(best)], f"front {group}", stepped=True)
        for point in points:
            chart.dot(_drawn_at(point, bound), point.accuracy, f"{_kind(point)} {group}", _told(point))
    return chart.svg()


def follow_ups(evaluation: Evaluation) -> list[str]:
    """What was done to the coalitions' mixes, in the order of the colours."""
    return list(dict.fromkeys(_parts(point)[1] for point in evaluation.of(COLLUSION)))


def coalitions(evaluation: Evaluation) -> list[tuple[str, str]]:
    """For each strategy: the share of the recipients who are caught against the coalition's size."""
    mixed = evaluation.of(COLLUSION)
    after = follow_ups(evaluation)
    sizes = sorted({point.colluders for point in mixed})
    found = []
    for strategy in dict.fromkeys(_parts(point)[0] for point in mixed):
        chart = Chart(f"{strategy}: recipients caught", counts("copies mixed", sizes), shares("recipients caught"))
        for place, follow_up in enumerate(after):
            points = [point for point in mixed if _parts(point) == (strategy, follow_up)]
            runs = [[sum(p.caught) / size for p in points if p.colluders == size] for size in sizes]
            means = [(size, sum(run) / len(run)) for size, run in zip(sizes, runs, strict=True) if run]
            chart.line(means, f"series s{place % 4}")
            for p in points:
                chart.dot(
                    p.colluders, sum(p.caught) / p.colluders, f"mark s{place % 4}", _told(p), 6.5 - 1.4 * min(place, 3)
                )
        found.append((strategy, chart.svg()))
    return found


def innocents(evaluation: Evaluation) -> str:
    """How often innocents' scores were what they were, over all suspects, against the bound; of an evaluation with all
    scores."""
    read = [point for point in evaluation.points if point.threshold is not None]
    first, width, count = BINS
    totals = [sum(point.histogram[i] for point in read) for i in range(count)]
    decades = math.ceil(math.log10(30 * max([*totals, 10])))  # with room for words above the bars
    top = max((point.highest_innocent or 0.0 for point in read), default=0.0)
    plain = max((point.unaligned[1] or 0.0 for point in read), default=0.0)
    lowest, highest = -6.0, max(9.0, top + 1, (_bound(evaluation) or 0.0) + 5)
    chart = Chart(
        "innocents' scores against the bound",
        _linear("score of an innocent, in standard deviations", lowest, highest),
        _decades("innocents scored", decades),
        520,
        300,
    )
    for i, total in enumerate(totals):
        low = first + i * width
        if total and lowest <= low < highest:
            title = f"{total:,} innocents scored {low:g} to {low + width:g}"
            chart.bar(low, low + width, total, "bar", title)
    bound = _bound(evaluation)
    if bound is not None:
        text = f"the lowest score that accuses in any trace here: {bound:.2f}"
        chart.upright(bound, "bound", "accused from here on", text)
    chart.upright(top, "highest", f"highest {top:.1f}", f"the highest innocent: {top:.2f}", before=True)
    if plain != top:
        text = f"the highest innocent if channels are not put in order: {plain:.2f}"
        chart.upright(plain, "highest", f"without alignment {plain:.1f}", text, before=True, row=1)
    return chart.svg()


def layers(evaluation: Evaluation) -> str:
    """Where the evidence is: in a copy as issued, and after the hardest of each attack that leaves the model most of
    what it can do; of those whose evidence is not withheld. Empty if there is none."""
    copy = evaluation.copy
    least = evaluation.chance + KEPT * (copy.accuracy - evaluation.chance)
    rows = [("as issued", copy.layers)] if copy.layers else []
    for name, points in evaluation.sweeps.items():
        usable = [point for point in points if point.accuracy >= least and point.layers]
        if usable:
            hardest = min(usable, key=evidence)
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


def _parts(point: Point) -> tuple[str, str]:
    """A collusion's strategy, and what followed."""
    strategy, _, after = point.attack.partition(FOLLOWED_BY)
    return strategy, after or "nothing more"


def _bound(evaluation: Evaluation) -> float | None:
    """The lowest score from which on any trace accuses in its first round."""
    return min((p.threshold for p in evaluation.points if p.threshold is not None), default=None)


def _draw_bound(chart: Chart, bound: float | None) -> None:
    if bound is not None:
        chart.shade(LEAST_SCORE, bound, "free", "under the bound: nobody is accused")
        chart.upright(bound, "bound", "bound", f"from a score of {bound:.2f} on a recipient is accused")


def _drawn_at(point: Point, bound: float | None) -> float:
    """Where a point lies: at its score, or at the bound if that is withheld."""
    return (LEAST_SCORE if bound is None else bound) if point.score is None else point.score


def _highest(evaluation: Evaluation) -> float:
    return max(point.score or 0.0 for point in evaluation.points)


def _accuracy(evaluation: Evaluation) -> Axis:
    values = [point.accuracy for point in evaluation.points]
    return shares("accuracy kept", min(values), max(values))


def _kind(point: Point) -> str:
    return "accused" if point.accused else "escaped"


def _told(point: Point) -> str:
    """A point in a sentence."""
    who = "nobody is accused"
    if point.accused:
        who = f"{sum(point.caught)} of {point.colluders} accused" if point.colluders > 1 else "accused"
    main = sum(point.main_givers)
    if main < point.colluders:
        who += f", {sum(map(min, point.main_givers, point.caught))} of the {main} who gave a twentieth or more"
    return f"{point.what}: accuracy {point.accuracy:.1%}, score {score_in_words(point.score)}, {who}"


def _linear(label: str, lowest: float, highest: float) -> Axis:
    ticks: Iterable[int] = range(math.ceil(lowest / 2) * 2, math.floor(highest) + 1, 2 if highest < 20 else 10)
    return Axis(label, lambda x: (x - lowest) / (highest - lowest), tuple((float(t), f"{t:g}") for t in ticks))


def _decades(label: str, decades: int) -> Axis:
    """A logarithmic axis from a half to so many powers of ten."""
    low = math.log10(0.5)
    ticks = tuple((10.0**i, f"{10**i:,}" if i < 4 else f"1e{i}") for i in range(decades + 1))
    return Axis(label, lambda n: (math.log10(max(n, 0.5)) - low) / (decades - low), ticks)
