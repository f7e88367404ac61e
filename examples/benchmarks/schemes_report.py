"""Rows of the suspects in `schemes.py`, and the table of three schemes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from scipy import stats

from examples._common.results import Table
from hf_fingerprint.attacks import SUITE
from hf_fingerprint.evaluation import Evaluation, Trial
from hf_fingerprint.evaluation.trials import BASE, COLLUSION, COPY, SINGLE
from hf_fingerprint.sharing import JsonLinesStore


SPREAD, DEEPMARKS, TOOLBOX = "spread", "deepmarks", "toolbox"
PAPERS, SOFT = "deepmarks, 0.85 and AND", "deepmarks, soft decoder"
SCHEME_OF = {SPREAD: SPREAD, PAPERS: DEEPMARKS, SOFT: DEEPMARKS, TOOLBOX: TOOLBOX}
READ, UNREADABLE, FAILED = "read", "unreadable", "failed"
BY_CHANCE = 1e-6
NOT_MEASURED = "-"


@dataclass(frozen=True)
class Row:
    """One suspect of one scheme.

    Attributes:
        scheme (`str`): `"spread"`, `"deepmarks"` or `"toolbox"`.
        kind, attack, what, step, strength: as in a [`Trial`].
        colluders (`int`): number of copies it was made from, those of users 0 and up.
        outcome (`str`): `"read"`; `"unreadable"`, if its weights don't fit the base's architecture; `"failed"`,
            if the attack does not work.
        reason (`str`): why it failed.
        accuracy (`float` or `None`): on the test images, if the model runs.
        named (`dict[str, tuple[int, ...]]`): colluders that each decoder names.
        innocents (`dict[str, int]`): number of innocents that each decoder names.
        wrong, bits (`int` or `None`): wrong bits of user 0, and the number of bits; `None` for `spread`.
        score (`float` or `None`): standard deviations of an innocent's for `spread`, else mean agreement of bits.
    """

    scheme: str
    kind: str
    attack: str
    what: str
    step: int
    strength: float
    colluders: int
    outcome: str
    reason: str = ""
    accuracy: float | None = None
    named: dict[str, tuple[int, ...]] = field(default_factory=dict)
    innocents: dict[str, int] = field(default_factory=dict)
    wrong: int | None = None
    bits: int | None = None
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "Row":
        """Returns the row of a JSON object; raises `TypeError` for anything else."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in entries.items() if name in names})

    @property
    def suspect(self) -> tuple[str, int, int]:
        """The attack, its strength and the size of the coalition, by which schemes are compared."""
        return self.attack, self.step, self.colluders

    def keeps(self, decoder: str) -> bool:
        """Returns whether the mark is still there: a colluder is named and no innocent.

        For the toolbox: whether so few wrong bits have a probability of at most a millionth by chance.
        """
        if self.outcome != READ:
            return False
        if decoder == TOOLBOX:
            return bool(stats.binom.cdf(self.wrong, self.bits, 0.5) <= BY_CHANCE)
        return bool(self.named[decoder]) and not self.innocents[decoder]


@dataclass(frozen=True)
class Trained:
    """The training of a scheme's copies.

    Attributes:
        carriers (`tuple[str, ...]`): the tensors that hold the mark.
        steps (`tuple[int, ...]`): training steps of each copy.
        right (`tuple[bool, ...]`): whether each decodes to its user alone, unattacked.
    """

    carriers: tuple[str, ...]
    steps: tuple[int, ...]
    right: tuple[bool, ...]


def from_trial(trial: Trial) -> Row:
    """Returns the row of a trial of an evaluation."""
    return Row(
        SPREAD,
        trial.kind,
        trial.attack,
        trial.what,
        trial.step,
        trial.strength,
        trial.colluders,
        READ,
        accuracy=trial.accuracy,
        named={SPREAD: tuple(user for user, caught in enumerate(trial.caught) if caught)},
        innocents={SPREAD: trial.innocents_accused},
        score=trial.score,
    )


class Rows(JsonLinesStore[Row]):
    """Rows by their keys, each written to disk when it is measured.

    Args:
        file (`Path`): lines of JSON.
    """

    def __init__(self, file: Path):
        super().__init__(file, Row.from_dict)


def summarize(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """Returns how many suspects of each group keep each decoder's mark, of those that all schemes measured."""
    by_suspect: dict[tuple[str, int, int], dict[str, Row]] = {}
    for row in rows:
        if row.kind in (SINGLE, COLLUSION) and row.outcome != FAILED:
            by_suspect.setdefault(row.suspect, {})[row.scheme] = row
    found: dict[str, dict[str, dict[str, int]]] = {}
    for (attack, _, _), by_scheme in by_suspect.items():
        group = SUITE[attack].group
        decoders = [name for name in SCHEME_OF if group != COLLUSION or name != TOOLBOX]
        if all(SCHEME_OF[name] in by_scheme for name in decoders):
            for name in decoders:
                counts = found.setdefault(group, {}).setdefault(name, {"kept": 0, "of": 0})
                counts["kept"] += by_scheme[SCHEME_OF[name]].keeps(name)
                counts["of"] += 1
    return found


def innocents_named(rows: Iterable[Row]) -> dict[str, int]:
    """Returns how many innocents each decoder names, over all rows."""
    found = dict.fromkeys((SPREAD, PAPERS, SOFT), 0)
    for row in rows:
        for decoder, count in row.innocents.items():
            if decoder in found:
                found[decoder] += count
    return found


def write_table(
    rows: Sequence[Row], evaluation: Evaluation, trained: Mapping[str, Trained], out: Path
) -> tuple[dict[str, Any], Table]:
    """Writes `table.md` and `results.json`.

    Args:
        rows (sequence of [`Row`]): of all schemes.
        evaluation ([`Evaluation`]): of `spread`.
        trained (mapping of `str` to [`Trained`]): the schemes whose marks were trained in.
        out (`Path`): the folder.

    Returns:
        `(counts, table)`.
    """
    summary = {
        "copies": {name: asdict(each) for name, each in trained.items()},
        "kept": summarize(rows),
        "innocents_named": innocents_named(rows),
    }
    made = table(rows, evaluation, trained)
    written = {"table.md": made.markdown() + "\n"}
    written["results.json"] = json.dumps(summary | {"rows": [asdict(row) for row in rows]}, indent=1)
    for name, text in written.items():
        partial = out / f"tmp-{name}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / name)
    return summary, made


def table(rows: Sequence[Row], evaluation: Evaluation, trained: Mapping[str, Trained]) -> Table:
    """Returns the table of attacks by schemes."""
    kinds = (BASE, COPY, SINGLE, COLLUSION)
    attacks = list(dict.fromkeys(row.attack for row in sorted(rows, key=lambda row: kinds.index(row.kind))))
    order = {name: number for number, name in enumerate(SUITE)}
    attacks.sort(key=lambda name: order.get(name, -1))
    columns = ("attack", "strengths", "accuracy", SPREAD, "deepmarks, paper's", "deepmarks, soft", TOOLBOX)
    by_attack = ({(row.scheme, row.suspect): row for row in rows if row.attack == attack} for attack in attacks)
    shown = zip(attacks, by_attack, strict=True)
    lines = (cells(each, row_at) for each, row_at in shown if any(row.outcome != FAILED for row in row_at.values()))
    named = ", ".join(f"{count} by {name}" for name, count in innocents_named(rows).items())
    notes = (
        f"{evaluation.images:,} images of {evaluation.data}. Strengths a / b / c, of collusions the coalition's size. "
        "Accuracy: of `spread`'s copy. `spread`: the score, or nobody is accused. `deepmarks`: whether user 0 is "
        "named, or how many of the coalition. `toolbox`: wrong bits of 31; 2 or fewer come by chance less than once "
        "in a million times.",
        f"Innocents named, all rows: {named}.",
        *footnotes(rows, evaluation, trained),
    )
    return Table("schemes", "", columns, tuple(map(tuple, lines)), notes)


def cells(attack: str, row_at: Mapping[tuple[str, tuple[str, int, int]], Row]) -> list[str]:
    """Returns a line of the table: one attack at all strengths."""
    suspects = sorted({suspect for _, suspect in row_at}, key=lambda suspect: suspect[1:])

    def each(scheme: str, format_row: Any) -> str:
        found = [row_at.get((scheme, suspect)) for suspect in suspects]
        texts = [NOT_MEASURED if row is None or row.outcome == FAILED else format_row(row) for row in found]
        return texts[0] if set(texts) in ({NOT_MEASURED}, {UNREADABLE}) else " / ".join(texts)

    any_of = [next(row for (_, s), row in row_at.items() if s == suspect) for suspect in suspects]
    return [
        attack,
        " / ".join(f"{row.strength:g}" for row in any_of),
        each(SPREAD, lambda row: f"{row.accuracy:.1%}"),
        each(SPREAD, score_cell),
        each(DEEPMARKS, lambda row: named_cell(row, PAPERS)),
        each(DEEPMARKS, lambda row: named_cell(row, SOFT)),
        each(TOOLBOX, lambda row: f"{row.wrong}" if row.outcome == READ else row.outcome),
    ]


def score_cell(row: Row) -> str:
    """Returns the score, with the number caught of a coalition, or "nobody"."""
    if not row.named[SPREAD]:
        found = "nobody"
    else:
        found = f"{row.score:.0f}" + (f" ({len(row.named[SPREAD])} of {row.colluders})" if row.colluders > 1 else "")
    return found + innocents_note(row, SPREAD)


def named_cell(row: Row, decoder: str) -> str:
    """Returns whether user 0 is named, or how many of a coalition are."""
    if row.outcome != READ:
        return row.outcome
    caught = len(row.named[decoder])
    found = f"{caught} of {row.colluders}" if row.colluders > 1 else ("yes" if caught else "no")
    return found + innocents_note(row, decoder)


def innocents_note(row: Row, decoder: str) -> str:
    """Returns the number of innocents named, if any."""
    count = row.innocents[decoder]
    return f", {count} innocent" + "s" * (count > 1) if count else ""


def footnotes(rows: Sequence[Row], evaluation: Evaluation, trained: Mapping[str, Trained]) -> list[str]:
    """Returns notes on skipped attacks, on the training of copies, and on "unreadable"."""
    found = [
        "Unreadable: the weights don't fit the base's architecture, and these decoders have no alignment. "
        f"{NOT_MEASURED}: not measured; the sweep of `spread` ends where both mark and model are lost.",
    ]
    for name, made in trained.items():
        steps = ", ".join(map(str, made.steps))
        found.append(
            f"{name}: in {', '.join(made.carriers)}, so an attack that leaves these unchanged leaves the mark; "
            f"training steps: {steps}; {sum(made.right)} of {len(made.right)} decode correctly unattacked."
        )
    reasons = {row.attack: row.reason for row in rows if row.outcome == FAILED} | evaluation.skipped
    return found + [f"{name} was skipped: {reason}" for name, reason in reasons.items()]
