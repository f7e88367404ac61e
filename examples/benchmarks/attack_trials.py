"""The trials of `attacks.py` that are kept in the repository, so that the runs of many days add up to one table.

Each line of the file is one suspect, as in a report that is made to be published: scores of the accused alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_fingerprint.evaluation import Trial


DIGITS = 5  # significant


@dataclass(frozen=True)
class KeptTrial:
    """A trial in the repository.

    Attributes:
        model (`str`): a name of the model and the budget.
        commit (`str`): of the code that ran.
        trial ([`Trial`]): the trial, redacted.
    """

    model: str
    commit: str
    trial: Trial

    @property
    def suspect(self) -> tuple[object, ...]:
        """What makes it another suspect than the others."""
        each = self.trial
        return self.model, each.kind, each.attack, each.step, each.what, each.colluders, *_short([*each.shares])

    def line(self) -> str:
        """The trial as a line of JSON."""
        values = replace(self.trial.redacted(), layers=(), seconds=0.0).to_dict()
        return json.dumps({"model": self.model, "commit": self.commit} | {k: _short(v) for k, v in values.items()})


def read_trials(file: Path) -> list[KeptTrial]:
    """Returns the trials of a file; none if there is no file."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        values = json.loads(line)
        found.append(KeptTrial(values.pop("model"), values.pop("commit"), Trial.from_dict(values)))
    return found


def add_trials(file: Path, new: Iterable[KeptTrial]) -> list[KeptTrial]:
    """Adds the trials of a run to a file, in place of older ones of the same suspects, and returns all."""
    kept = {each.suspect: each for each in (*read_trials(file), *new)}
    found = sorted(kept.values(), key=lambda each: repr(each.suspect))
    file.write_text("".join(each.line() + "\n" for each in found))
    return found


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
