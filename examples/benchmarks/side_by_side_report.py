"""What is measured of each scheme next to the public code of others, and the tables of it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples._common.results import Figure, Table, figure_table
from examples.benchmarks.speed import AMPLITUDE


TATTOOED, TOOLBOX, OURS = "TATTOOED", "DeepMarks in the toolbox", "ours"
FEWEST_TIMES_FASTER = 10
CIFAR_IMAGES = 33_334  # those that the toolbox's owner trains on
MEANINGS = {
    TATTOOED: "whether one owner's text is there; no probability of a false accusation",
    TOOLBOX: "whether one owner's bits correlate, above 0; no probability of a false accusation",
    OURS: "which recipient's copy it is, if the bound on accusing any innocent is at most {alpha:g}",
}


@dataclass
class Measured:
    """What was measured of one scheme: seconds of each turn, and what it says.

    Attributes:
        bits (`int`): length of the mark.
        issue, embedding (`list[float]`): seconds to issue a copy from file to file, and without the files.
        extract (`dict[str, list[float]]`): seconds of an extraction from a file, by what is extracted among.
        right (`dict[str, list[bool]]`): whether each of these was right.
        wrong (`list[int]`): wrong bits of each extraction, where the scheme shows them.
        steps (`list[int]`): training steps of each embedding, if it trains.
        accuracy (`float`): of a copy.
        of_base (`str`): what it says of the unmarked base.
    """

    bits: int
    issue: list[float] = field(default_factory=list)
    embedding: list[float] = field(default_factory=list)
    extract: dict[str, list[float]] = field(default_factory=dict)
    right: dict[str, list[bool]] = field(default_factory=dict)
    wrong: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    accuracy: float = 0.0
    of_base: str = ""

    def add_extraction(self, what: str, took: float, right: bool) -> None:
        """Adds the seconds and the outcome of an extraction."""
        self.extract.setdefault(what, []).append(took)
        self.right.setdefault(what, []).append(right)


def among(recipients: int) -> str:
    """Returns the name of a trace among so many recipients."""
    return f"{OURS}, among {recipients:,} recipient{'s' if recipients > 1 else ''}"


def times(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, str]:
    """Returns the median ratio of the pairs, and how it is shown, with the smallest and the largest."""
    ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
    middle = statistics.median(ratios)
    shown, least, most = (f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in (middle, ratios[0], ratios[-1]))
    return middle, f"{shown} ({least} - {most})"


def ratio_table(others: Mapping[str, Measured], ours: Measured) -> Table:
    """Returns how many times as long the others take."""
    figures = []
    for name, theirs in others.items():
        middle, shown = times(theirs.issue, ours.issue)
        bound, holds = f">= {FEWEST_TIMES_FASTER}", middle >= FEWEST_TIMES_FASTER
        figures.append(Figure(f"issue a copy, file to file: {name} / ours", shown, bound, holds))
        _, shown = times(theirs.embedding, ours.issue)
        figures.append(Figure(f"embedding in {name} without files / ours, file to file", shown, "reported"))
        for what, took in ours.extract.items():
            _, shown = times(theirs.extract[name], took)
            figures.append(Figure(f"extract from a file: {name} / {what}", shown, "reported"))
    return figure_table(figures, "ratios")


def schemes_table(schemes: Mapping[str, Measured], alpha: float, notes: Sequence[str]) -> Table:
    """Returns the seconds of each scheme, what it carries and what it says."""
    rows = []
    for name, each in schemes.items():
        embedding = f"{statistics.median(each.embedding):.3g}" if each.embedding else "-"
        for what, took in each.extract.items():
            right = each.right[what]
            wrong = f", at most {max(each.wrong)} of {each.bits} bits wrong" if each.wrong else ""
            rows.append(
                (
                    what,
                    f"{each.bits:,}",
                    f"{statistics.median(each.issue):.3g}",
                    embedding,
                    f"{statistics.median(took):.3g}",
                    f"{sum(right)} of {len(right)}{wrong}",
                    each.of_base,
                    f"{each.accuracy:.1%}",
                    MEANINGS[name].format(alpha=alpha),
                )
            )
    columns = (
        "scheme",
        "bits",
        "issue, s",
        "embedding alone, s",
        "extract, s",
        "right",
        "the unmarked base",
        "accuracy",
        "what extraction says",
    )
    return Table("schemes", "", columns, tuple(rows), tuple(notes))


def notes(
    setting: str, pairs: int, first: Mapping[int, float], about: Mapping[str, Mapping[str, Any]], toolbox: Measured
) -> tuple[str, ...]:
    """Returns the paragraphs below the table of schemes.

    Args:
        setting (`str`): the model, the images and the threads.
        pairs (`int`): number of turns.
        first (mapping of `int` to `float`): seconds of the first trace of a vault, by its recipients.
        about (mapping of `str` to mapping): what the process of each public scheme says of it.
        toolbox ([`Measured`]): the toolbox's DeepMarks.
    """
    trained = about[TOOLBOX]
    step = statistics.median(took / steps for took, steps in zip(toolbox.embedding, toolbox.steps, strict=True))
    published = trained["published_epochs"] * math.ceil(CIFAR_IMAGES / trained["batch"])
    firsts = ", ".join(f"{took:.2f} s among {recipients:,}" for recipients, took in first.items())
    return (
        f"{setting} Medians of {pairs} turns. All files are in memory, the vault among them. Not timed: building the "
        "model, registering the base, unlocking the vault, making TATTOOED's code matrices, and the first trace of a "
        f"vault, which opens its keys ({firsts}).",
        f"TATTOOED: {about[TATTOOED]['note']}. Its bits are those of its text, before error correction.",
        f"DeepMarks in the toolbox: {trained['note']}. It embeds by training: here "
        f"{statistics.median(toolbox.steps):g} steps of {step:.2g} s. Its configuration has "
        f"{trained['published_epochs']} epochs of CIFAR-10, {published:,} steps unless it stops early. From the time "
        f"of a step, these would take {published * step / 3600:.2g} hours (computed, not run). Right means that it "
        "accepts the copy and that all bits match, which we read at half of their trained value: the toolbox only "
        "correlates.",
        "Ours: the bits are positions of a codeword, which is each recipient's own. The mark has a fixed strength, "
        f"{AMPLITUDE:g} of the size of a weight's row.",
    )
