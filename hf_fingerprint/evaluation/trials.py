"""What was measured, each point on the disk as soon as it is known: an evaluation that was cut off goes on there.

Scores of recipients who are not accused help an attacker to build a suspect that accuses one of them. Resuming needs
them, so they are kept in a folder of their own, `private`, which only its owner can read; what is written for people
has none of them ([`Trial.redacted`]).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.files import write_all
from hf_fingerprint.errors import FingerprintError
from hf_fingerprint.vault.storage import file_error, translate_disk_errors


PRIVATE, RESULTS = "private", "results.jsonl"
MAIN_SHARE = 1 / 20
BASE, COPY, SINGLE, COLLUSION = "base", "copy", "single", "collusion"
_OWN_FILES = {PRIVATE, RESULTS, "results.json", "table.md", "report.html", "copies", ".lock"}


@dataclass(frozen=True)
class Trial:
    """One suspect: how it was made, what it is worth, and what a trace says of it.

    Attributes:
        kind (`str`): `"base"` (the unmarked model), `"copy"` (one as issued), `"single"` (a copy attacked) or
            `"collusion"`.
        attack (`str`): the name in the suite.
        what (`str`): the attack with all its settings.
        step (`int`): its place in the sweep, mild ones first.
        strength (`float`): the attack's, or the number of colluders.
        accuracy (`float`): on the test images.
        agreement (`float`): share of the test images on which it predicts what the copy does.
        scores (`tuple[float or None, ...]`): of those it was made from, in standard deviations of an innocent's;
            `None` where withheld.
        log10_bounds (`tuple[float or None, ...]`): decimal logarithms of their bounds on a false accusation.
        caught (`tuple[bool, ...]`): which of them are accused.
        shares (`tuple[float, ...]`): how much of it came from each.
        threshold (`float` or `None`): the score from which on the first round accuses; `None` if nothing does.
        innocents (`int`): innocents scored.
        innocents_accused (`int`): innocents accused; whoever accuses rightly has 0.
        highest_innocent (`float` or `None`): the highest of their scores; `None` where withheld.
        histogram (`tuple[int, ...]`): of their scores; empty where withheld.
        unaligned (`tuple[int, float or None]`): innocents accused and the highest of their scores, without alignment.
        aligned (`int`): carriers that alignment put in order.
        drift (`float`): norm of the difference to the base, relative to the base's weights.
        layers (`tuple[float, ...]`): the first one's score by each carrier alone; empty where withheld.
        seconds (`float`): how long it took.
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

    @property
    def colluders(self) -> int:
        """How many it was made from."""
        return len(self.scores)

    @property
    def score(self) -> float | None:
        """The highest of those it was made from, the evidence left; 0 if from nobody, `None` where withheld."""
        shown = [score for score in self.scores if score is not None]
        return max(shown, default=None if self.scores else 0.0)

    @property
    def main_contributors(self) -> tuple[bool, ...]:
        """Whether at least a twentieth of its weights, as they differ between copies, came from each."""
        return tuple(share >= MAIN_SHARE for share in self.shares)

    @property
    def accused(self) -> bool:
        """Whether anybody it was made from is."""
        return any(self.caught)

    def redacted(self) -> "Trial":
        """The point with scores, bounds and evidence of those who are accused alone: nothing in it depends on the
        codeword of anybody else."""
        return replace(
            self,
            scores=_only_accused(self.scores, self.caught),
            log10_bounds=_only_accused(self.log10_bounds, self.caught),
            highest_innocent=None,
            histogram=(),
            unaligned=(self.unaligned[0], None),
            layers=self.layers if self.caught[:1] == (True,) else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON; what is not finite is `None`."""
        return {name: _json_finite(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Trial":
        """The point that was told so; anything else is a `TypeError` or a `KeyError`."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = told[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _only_accused(values: tuple[float | None, ...], caught: tuple[bool, ...]) -> tuple[float | None, ...]:
    return tuple(value if accused else None for value, accused in zip(values, caught, strict=True))


def _json_finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trial_key(**key_parts: Any) -> str:
    """What tells a point from others: a digest of everything that decides its figures."""
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True, default=repr).encode()).hexdigest()[:24]


class _JsonRecord(Protocol):
    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""


R = TypeVar("R", bound=_JsonRecord)


class JsonLinesStore(Generic[R]):
    """Records by their keys, each a line of a file as soon as it is known.

    Args:
        file (`Path`): lines of JSON; one that was cut off goes, one of another version is left alone.
        told (callable): makes a record of what one says as JSON; anything else is a `TypeError` or a `KeyError`.

    Attributes:
        known (`dict`): the records by their keys.
    """

    def __init__(self, file: Path, told: Callable[[Mapping[str, Any]], R]):
        self._file, self._parse = file, told
        self.known: dict[str, R] = {}
        with translate_disk_errors(f"{file} can't be used", file.parent):
            content = file.read_bytes() if file.exists() else b""
            complete_size = content.rfind(b"\n") + 1
            if complete_size < len(content):
                os.truncate(file, complete_size)  # a line that was cut off
        for line in content[:complete_size].splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line of another version: measured again
                values = json.loads(line)
                self.known[values["key"]] = told(values)

    def add(self, key: str, record: R) -> R:
        """Keeps a record, on the disk when this returns; gives it back as it will be read."""
        values = record.to_dict()
        line = json.dumps({"key": key} | values, allow_nan=False).encode() + b"\n"
        with (
            translate_disk_errors(f"{self._file} can't be written", self._file.parent),
            self._file.open("ab", 0) as stream,
        ):
            write_all(stream, memoryview(line))
            os.fsync(stream.fileno())
        self.known[key] = self._parse(values)
        return self.known[key]


class ResultStore(JsonLinesStore[Trial]):
    """The points of an evaluation's folder, with all scores, in its part that is not handed on.

    Args:
        folder (`Path`): the folder, which [`open_evaluation_folder`] has made sure of.
    """

    def __init__(self, folder: Path):
        private = folder / PRIVATE
        earlier = folder / RESULTS
        with translate_disk_errors(f"{private} can't be used", folder):
            private.mkdir(exist_ok=True, mode=0o700)
            if earlier.exists() and not (private / RESULTS).exists():
                earlier.replace(private / RESULTS)  # earlier versions left it among what is handed on
        super().__init__(private / RESULTS, Trial.from_dict)

    @property
    def trials(self) -> dict[str, Trial]:
        """The points by their keys."""
        return self.known


@contextmanager
def open_evaluation_folder(folder: Path) -> Iterator[None]:
    """Makes an evaluation's folder, for its owner's eyes only, or goes on in one, alone.

    Raises:
        [`FingerprintError`]: if it holds something else, or another process is at work there.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        others = [
            p.name for p in folder.iterdir() if p.name not in _OWN_FILES and not p.name.startswith(("vault-", "tmp"))
        ]
    except OSError as error:
        if is_disk_full_error(error):
            raise disk_full_error(folder) from None
        raise FingerprintError(f"{folder} can't be used ({error.strerror}): choose another --out.") from None
    if others:
        raise FingerprintError(
            f"{folder} holds something else ({', '.join(sorted(others)[:3])}): choose an empty folder, or that of an "
            f"earlier evaluation, for --out."
        )
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FingerprintError(f"Another evaluation is at work in {folder}: wait for it.") from None
    except OSError as error:
        raise file_error(f"{folder} can't be used", folder, error) from None
    try:
        yield
    finally:
        lock.release()
