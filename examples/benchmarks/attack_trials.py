"""The trials of `attacks.py` that are kept in the repository, so that the runs of many days add up to one table.

Each line of the file is one suspect, as in a report that is made to be published: scores of the accused alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_fingerprint.attacks import SUITE
from hf_fingerprint.evaluation import Trial


DIGITS = 5  # significant
_ORDER = {name: number for number, name in enumerate(SUITE)}
_LEFT_OUT: dict[str, Any] = {
    "log10_bounds": (),
    "highest_innocent": None,
    "histogram": (),
    "layers": (),
    "seconds": 0.0,
}


@dataclass(frozen=True)
class KeptTrial:
    """A trial in the repository.

    Attributes:
        model (`str`): a name of the model and the budget.
        commit (`str`): of the code that ran.
        trial ([`Trial`]): the trial, with what its tables need.
    """

    model: str
    commit: str
    trial: Trial

    @classmethod
    def of(cls, model: str, commit: str, trial: Trial) -> "KeptTrial":
        """A trial of a run without what is not to be published."""
        return cls(model, commit, replace(trial.redacted(), **_LEFT_OUT))

    @property
    def place(self) -> tuple[Any, ...]:
        """Its place in the file, which no other suspect has."""
        each = self.trial
        attack = _ORDER.get(each.attack, -1), each.kind, each.attack
        return self.model, *attack, each.step, each.colluders, each.what, *_short([*each.shares])

    def line(self) -> str:
        """The trial as a line of JSON."""
        values = {name: _short(value) for name, value in self.trial.to_dict().items() if name not in _LEFT_OUT}
        return json.dumps({"model": self.model, "commit": self.commit} | values)


def read_trials(file: Path) -> list[KeptTrial]:
    """Returns the trials of a file; none if there is no file."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        values = json.loads(line)
        model, made = values.pop("model"), values.pop("commit")
        found.append(KeptTrial(model, made, Trial.from_dict(_LEFT_OUT | values)))
    return found


def add_trials(file: Path, new: Iterable[KeptTrial]) -> list[KeptTrial]:
    """Adds the trials of a run to a file, in place of older ones of the same suspects, and returns all."""
    kept = {each.place: each for each in (*read_trials(file), *new)}
    found = [kept[place] for place in sorted(kept)]
    file.write_text("".join(each.line() + "\n" for each in found))
    return read_trials(file)


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
