"""The results of an evaluation, stored one by one so that an interrupted evaluation can resume.

Scores of recipients who are not accused help an attacker to build a suspect that accuses one of them. Resuming needs
these scores, so they are stored in the folder `private`, which only the owner can read. Reports leave them out
([`Trial.redacted`]).
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hf_fingerprint.sharing import JOB_LOCKS, RESULTS, JobLocks, JsonLinesStore, open_private_folder
from hf_fingerprint.vault.storage import translate_disk_errors


PRIVATE = "private"
MAIN_SHARE = 1 / 20
BASE, COPY, SINGLE, COLLUSION = "base", "copy", "single", "collusion"
_OWN_FILES = {PRIVATE, RESULTS, "results.json", "table.md", "report.html", "copies"}


@dataclass(frozen=True)
class Trial:
    """One suspect: how it was made, its accuracy, and the result of tracing it.

    Attributes:
        kind (`str`): `"base"` (unmarked), `"copy"` (as issued), `"single"` (an attacked copy) or `"collusion"`.
        attack (`str`): the attack's name in the suite.
        what (`str`): the attack with all its parameters.
        step (`int`): the index in the sweep, mildest first.
        strength (`float`): the attack's strength, or the number of colluders.
        accuracy (`float`): on the test images.
        agreement (`float`): the share of test images with the same prediction as the copy.
        scores (`tuple[float or None, ...]`): the colluders' scores, in standard deviations of an innocent's; `None`
            if withheld. A single copy has one "colluder".
        log10_bounds (`tuple[float or None, ...]`): decimal logarithms of the colluders' bounds on a false accusation.
        caught (`tuple[bool, ...]`): which colluders are accused.
        shares (`tuple[float, ...]`): each colluder's share of the suspect.
        threshold (`float` or `None`): the lowest score that accuses in the first round; `None` if none does.
        innocents (`int`): how many innocents were scored.
        innocents_accused (`int`): how many innocents were accused; should be 0.
        highest_innocent (`float` or `None`): the highest score of an innocent; `None` if withheld.
        histogram (`tuple[int, ...]`): of innocents' scores; empty if withheld.
        unaligned (`tuple[int, float or None]`): innocents accused and their highest score without alignment.
        aligned (`int`): how many carriers were aligned.
        drift (`float`): norm of the difference to the base, relative to the base's weights.
        layers (`tuple[float, ...]`): the first colluder's score in each carrier alone; empty if withheld.
        seconds (`float`): how long the trial took.
        plain_scores (`tuple[float or None, ...]`): the colluders' scores by the plain reading alone.
        plain_caught (`tuple[bool, ...]`): which colluders are accused by the plain reading alone.
        blind_scores (`tuple[float or None, ...]`): the colluders' scores without the ancestor.
        blind_caught (`tuple[bool, ...]`): which colluders are accused without the ancestor.
    """

    kind: str
    attack: str
    what: str
    step: int
    strength: float
    accuracy: float
    agreement: float
    scores: tuple[float | None, ...]
    log10_bounds: tuple[float | None, ...]
    caught: tuple[bool, ...]
    shares: tuple[float, ...]
    threshold: float | None
    innocents: int
    innocents_accused: int
    highest_innocent: float | None
    histogram: tuple[int, ...]
    unaligned: tuple[int, float | None]
    aligned: int
    drift: float
    layers: tuple[float, ...]
    seconds: float
    plain_scores: tuple[float | None, ...] = ()
    plain_caught: tuple[bool, ...] = ()
    blind_scores: tuple[float | None, ...] = ()
    blind_caught: tuple[bool, ...] = ()

    @property
    def colluders(self) -> int:
        """The number of copies it was made from."""
        return len(self.scores)

    @property
    def score(self) -> float | None:
        """The highest score of a colluder; 0 for the base, `None` if withheld."""
        shown = [score for score in self.scores if score is not None]
        return max(shown, default=None if self.scores else 0.0)

    @property
    def main_contributors(self) -> tuple[bool, ...]:
        """For each colluder, whether at least a twentieth of the suspect came from its copy."""
        return tuple(share >= MAIN_SHARE for share in self.shares)

    @property
    def accused(self) -> bool:
        """Whether any colluder is accused."""
        return any(self.caught)

    def redacted(self) -> "Trial":
        """The trial with scores, bounds and evidence of the accused only, which no other codeword influences."""
        return replace(
            self,
            scores=_only_accused(self.scores, self.caught),
            log10_bounds=_only_accused(self.log10_bounds, self.caught),
            highest_innocent=None,
            histogram=(),
            unaligned=(self.unaligned[0], None),
            plain_scores=_only_accused(self.plain_scores, self.plain_caught),
            blind_scores=_only_accused(self.blind_scores, self.blind_caught),
            layers=self.layers if self.caught[:1] == (True,) else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as values for JSON. Values that are not finite become `None`."""
        return {name: _json_finite(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Trial":
        """The trial that [`Trial.to_dict`] wrote. Raises `TypeError` or `KeyError` for anything else."""
        found: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        return cls(**found)


def _only_accused(values: tuple[float | None, ...], caught: tuple[bool, ...]) -> tuple[float | None, ...]:
    return tuple(value if accused else None for value, accused in zip(values, caught, strict=True))


def _json_finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Skipped:
    """An attack that does not work on the model.

    Attributes:
        reason (`str`): why.
    """

    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The reason as a value for JSON."""
        return {"skipped": self.reason}


def _parse_result(values: Mapping[str, Any]) -> Trial | Skipped:
    return Skipped(str(values["skipped"])) if "skipped" in values else Trial.from_dict(values)


class ResultStore(JsonLinesStore[Trial | Skipped]):
    """The trials of an evaluation's folder, with all scores, in its `private` part.

    Args:
        folder (`Path`): the folder, opened by [`open_evaluation_folder`].
    """

    def __init__(self, folder: Path):
        private, earlier = folder / PRIVATE, folder / RESULTS
        with translate_disk_errors(f"{private} can't be used", folder):
            private.mkdir(exist_ok=True, mode=0o700)
            if earlier.exists() and not (private / RESULTS).exists():
                earlier.replace(private / RESULTS)  # where earlier versions wrote it
        super().__init__(private / RESULTS, _parse_result, lambda result: isinstance(result, Trial))

    @property
    def trials(self) -> dict[str, Trial]:
        """The trials by key."""
        return {key: result for key, result in self.known.items() if isinstance(result, Trial)}


def open_job_locks(folder: Path) -> JobLocks:
    """The locks of an evaluation's trials, and of its copies, which one process issues."""
    with translate_disk_errors(f"{folder / PRIVATE} can't be used", folder):
        (folder / PRIVATE).mkdir(exist_ok=True, mode=0o700)
    return JobLocks(folder / PRIVATE / JOB_LOCKS)


def open_evaluation_folder(folder: Path) -> AbstractContextManager[None]:
    """Creates or reopens an evaluation's folder and locks it; see [`open_private_folder`]."""
    return open_private_folder(folder, lambda name: name in _OWN_FILES or name.startswith(("vault-", "tmp")))
