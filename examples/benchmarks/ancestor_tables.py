"""Tables of attacks with the ancestor, and of what each reading adds."""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from examples._common.results import Figure, Table, figure_table
from hf_fingerprint.attacks import SUITE
from hf_fingerprint.attacks.suite_entry import ANCESTOR
from hf_fingerprint.evaluation import Trial
from hf_fingerprint.evaluation.controls import NO_BETTER, ControlledTrial, with_controls
from hf_fingerprint.evaluation.trials import COLLUSION, COPY, SINGLE


READINGS = ("plain_", "blind_", "")  # of a trial's scores
UNTRAINED, TRAINED = "without fine-tuning", "that fine-tuning cost a tenth"
MUCH = 0.9  # of the score of the copy as issued
USEFUL = 0.02  # below the copy as issued: the accuracy at which a merge is worth something


def ancestor_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of attacks with the ancestor, by the number of copies, and of their controls.

    Each cell is the most accurate suspect that names nobody: its strength, how many points it is below the copy as
    issued, and *control* where the control is as good.
    """
    sizes = sorted({p.colluders for trials in models.values() for p in trials if group_of(p) == ANCESTOR})
    lines = []
    for attack, entry in SUITE.items():
        if entry.group != ANCESTOR:
            continue
        for size in sizes:
            cells = [ancestor_cell(attack, size, trials) for trials in models.values()]
            if set(cells) != {"-"}:
                lines.append((attack, str(size), *cells))
    return Table("ancestor", "", ("attack", "copies", *models), tuple(lines))


def ancestor_cell(attack: str, copies: int, trials: list[Trial]) -> str:
    swept = [p for p in trials if p.attack == attack and p.colluders == copies]
    if not swept:
        return "-"
    issued = issued_copy(trials).accuracy
    if SUITE[attack].control is None:
        return f"control: {100 * (issued - swept[0].accuracy):.1f} points"
    lost = [each for each in with_controls(trials) if each.trial in swept and not each.trial.accused]
    if not lost:
        lowest = min(swept, key=lambda p: p.accuracy)
        return f"not lost (to {100 * (issued - lowest.accuracy):.1f} points)"
    best: ControlledTrial = max(lost, key=lambda each: each.trial.accuracy)
    cell = f"at {best.trial.strength:g}: {100 * (issued - best.trial.accuracy):.1f} points"
    return f"{cell}, control" if best.outcome == NO_BETTER else cell


def contributors_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of copies merged or averaged with the ancestor: the share of colluders caught in the suspects
    within 2 points of the copy as issued and better than the control, and in the others."""
    rows: dict[tuple[str, int], list[list[Trial]]] = {}
    for trials in models.values():
        issued = issued_copy(trials).accuracy
        for each in with_controls(trials):
            if each.trial.kind == COLLUSION:
                useful = each.trial.accuracy >= issued - USEFUL and each.is_better
                both = rows.setdefault((each.trial.attack, each.trial.colluders), [[], []])
                both[0 if useful else 1].append(each.trial)
    lines = tuple((name, str(size), *map(caught_cell, both)) for (name, size), both in rows.items())
    return Table("contributors", "", ("attack", "copies", "caught where useful", "caught elsewhere"), lines)


def caught_cell(trials: list[Trial]) -> str:
    if not trials:
        return "-"
    return f"{sum(sum(p.caught) for p in trials)} of {sum(p.colluders for p in trials)}"


def readings_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of what each reading adds: suspects whose lowest colluder scores differently without them.

    A cell is the lowest colluder's score by the plain reading, without the ancestor and with all readings.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for column, trials in enumerate(models.values()):
        for trial in trials:
            if trial.scores and trial.plain_caught and len({lowest(trial, kind) for kind in READINGS}) > 1:
                steps = SUITE[trial.attack].attacks if trial.attack in SUITE else ()
                strength = f"{steps[trial.step].strength:g}" if trial.step < len(steps) else ""
                key = trial.attack, strength, str(trial.colluders)
                cells = lines.setdefault(key, ["-"] * len(models))
                cells[column] = f"{100 * trial.accuracy:.0f}, {' / '.join(lowest(trial, kind) for kind in READINGS)}"
    columns = ("attack", "strength", "copies", *models)
    return Table("readings", "", columns, tuple((*key, *cells) for key, cells in lines.items()))


def lowest(trial: Trial, kind: str) -> str:
    """Returns the lowest colluder's score by some readings, or how many of the colluders are accused."""
    scores, caught = (getattr(trial, f"{kind}{field}") for field in ("scores", "caught"))
    if all(caught):
        return f"{min(scores):.0f}"
    return f"{sum(caught)} of {len(caught)}" if any(caught) else "lost"


def before_table(models: dict[str, list[Trial]]) -> Table:
    """Returns the table of scores of attacked copies relative to those of the plain reading alone."""
    pairs: dict[str, list[tuple[float, str]]] = {UNTRAINED: [], TRAINED: []}
    for name, trials in models.items():
        issued = issued_copy(trials)
        for trial in trials:
            if trial.kind != SINGLE or group_of(trial) == ANCESTOR or not (trial.accused and any(trial.plain_caught)):
                continue
            plain = trial.plain_scores[0] or 0.0
            if "finetune" in trial.attack:
                kind = TRAINED if plain < MUCH * (issued.score or 0.0) else ""
            else:
                kind = UNTRAINED
            if kind and trial.score is not None:
                where = f"{trial.attack} {trial.strength:g}, {name}"
                pairs[kind].append((trial.score / plain, where))
    figures = []
    for (kind, found), bound in zip(pairs.items(), (0.95, 1.2), strict=True):
        if found:
            (least, where), middle = min(found), median(ratio for ratio, _ in found)
            what = f"score / the plain reading's, {len(found)} suspects {kind}: lowest ({where})"
            figures.append(Figure(what, f"{least:.2f}", f">= {bound:g}", least >= bound))
            figures.append(Figure(f"the same, median of suspects {kind}", f"{middle:.2f}", "reported"))
    return figure_table(figures, "before")


def without_ancestor(trial: Trial) -> list[Trial]:
    """Returns the trial as it is if the ancestor is not registered; nothing if that was not measured."""
    if not trial.scores or trial.blind_caught:
        return [replace(trial, scores=trial.blind_scores, caught=trial.blind_caught)]
    return []


def unique_names(tables: Iterable[Table]) -> list[Table]:
    """Returns the tables, with `-unregistered` in a name that is there already."""
    found: dict[str, Table] = {}
    for table in tables:
        name = f"{table.name}-unregistered" if table.name in found else table.name
        found[name] = replace(table, name=name)
    return list(found.values())


def group_of(trial: Trial) -> str | None:
    """Returns the group of a trial's attack; `None` for the base and the copy as issued."""
    return SUITE[trial.attack].group if trial.attack in SUITE else None


def issued_copy(trials: list[Trial]) -> Trial:
    """Returns the trial of the copy as issued."""
    return next(p for p in reversed(trials) if p.kind == COPY)
