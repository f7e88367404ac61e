"""The transcript of a questioning: what was asked and answered, kept answer by answer, for whoever checks it later.

A text file in UTF-8, one JSON object a line, each line written whole and brought to the disk before the next question.

* The first line is the heading: `format` (1), `created` (when, ISO 8601 in UTC), `suspect` (its name, without
  secrets), `base` (its id), `digest` (SHA-256, in hexadecimal digits, over the 32-byte SHA-256 of each image of the
  pool, in order), `questions` and `decoys` (how many; the pool is the questions and then the decoys), `classes`,
  `alpha`, `share` and `recipients` (how many were tested).
* Then a line for each answer, in the order they came: `index` (its index in the pool), `image` (SHA-256 of its
  pixels, row by row, three bytes each), `response` (the class told, or `null` for none), `at` (when).

Where several bases are asked about at once, each has a file of its own with its own heading: `FILE` for the first in
the vault's order, and `FILE.<base id>` for each other. Their alphas are shares of the whole questioning's.

A crash may leave a last line without its end. It is cut off when the file is opened again, and the answer is lost.
"""

import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error
from hf_fingerprint.checkpoints.limits import MAX_LINE, MAX_LINE_VALUES, MAX_TRANSCRIPT, parse_json, read_bounded
from hf_fingerprint.errors import FingerprintError


FORMAT = 1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)  # Windows would change line ends


@dataclass(frozen=True)
class Heading:
    """What a questioning is about. Two with the same heading may go on with one another's answers.

    Attributes:
        suspect (`str`): its name, without secrets.
        base (`str`): the base's id.
        digest (`str`): of the pool, see [`pool_digest`].
        questions, decoys (`int`): how many of each.
        classes (`int`): of the base.
        alpha (`float`): the bound on accusing any innocent.
        share (`float` or `None`): of the questions, how many each recipient owns.
        recipients (`int`): how many are tested.
    """

    suspect: str
    base: str
    digest: str
    questions: int
    decoys: int
    classes: int
    alpha: float
    share: float | None
    recipients: int


class Transcript:
    """A transcript that is being written. Close it, or use it in a `with` block.

    Args:
        path (`str` or `Path`): its file. If it is there, it is gone on with.
        heading ([`Heading`]): what the questioning is about.

    Attributes:
        path (`Path`): its file.
        responses (`dict[int, int | None]`): the class told for each question so far, in the order they came.
        images (`dict[int, str]`): the digest of each question's image, see [`image_digest`].

    Raises:
        [`StorageError`]: if the disk is full.
        [`FingerprintError`]: if the file can't be read or written, isn't a transcript, is damaged, or is of another
            questioning.
    """

    def __init__(self, path: str | Path, heading: Heading):
        self.path, self.heading = Path(path), heading
        self.responses: dict[int, int | None] = {}
        self.images: dict[int, str] = {}
        try:
            self._file = os.open(self.path, _FLAGS, 0o600)
        except OSError as error:
            if is_disk_full_error(error):
                raise disk_full_error(self.path.parent) from None
            raise self._error(f"can't be written ({error.strerror})", "choose another place") from None
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __repr__(self) -> str:
        return f"Transcript({self.path}, {len(self.responses)} answers)"

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, index: int, image: str, response: int | None) -> None:
        """Keeps an answer; it is on the disk when this returns.

        Args:
            index (`int`): its index in the pool.
            image (`str`): the digest of its image, see [`image_digest`].
            response (`int` or `None`): the class told.

        Raises:
            [`FingerprintError`]: if there is no such question or class, or the question was answered before.
            [`StorageError`]: if the disk is full; then the answer is not kept, and may be asked for again.
        """
        line = {"question": index, "image": image, "answer": response, "at": _now()}
        if (wrong := self._find_error(line)) is not None:
            raise self._error(f"can't take question {index} and answer {response}, {wrong}", "ask another")
        self._write(line)
        self.responses[index], self.images[index] = response, image

    def close(self) -> None:
        """Closes the file; it can be opened again, to go on."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise self._error("is not a regular file", "name another file")
        with os.fdopen(os.dup(self._file), "rb") as file:
            content = file.read(MAX_TRANSCRIPT + 1)
        pool = self.heading.questions + self.heading.decoys
        if len(content) > MAX_TRANSCRIPT or content.count(b"\n") > pool + 1:
            raise self._error("holds more than its questions' answers", "restore it, or name another file")
        *lines, rest = content.split(b"\n")
        if not lines:
            self._begin(rest)
            return
        for number, text in enumerate(lines, 1):
            try:
                line = parse_json(text, MAX_LINE_VALUES, strict=True)
            except ValueError:
                line = None
            if number == 1:
                self._check_heading(line)
            elif not isinstance(line, dict) or not self._accept_line(line):
                raise self._error(f"is damaged in line {number}", "restore it, or name another file to begin anew")
        if rest:
            os.ftruncate(self._file, len(content) - len(rest))

    def _begin(self, rest: bytes) -> None:
        """Writes the heading, in place of what a crash may have left of it; never of a file that is something else."""
        heading = {"format": FORMAT, "created": _now(), **asdict(self.heading)}
        whole, date = json.dumps(heading, allow_nan=False).encode(), heading["created"].encode()
        before, after = whole.index(date), whole.index(date) + len(date)
        if not (whole[:before] + whole[after:]).startswith(rest[:before] + rest[after:]):
            raise self._error("is no transcript of this questioning", "name another file")
        if rest:
            os.ftruncate(self._file, 0)
        self._write(heading)
        _sync_folder(self.path.parent)

    def _check_heading(self, line: Any) -> None:
        if not isinstance(line, dict) or type(line.get("format")) is not int:
            raise self._error("is damaged in line 1", "restore it, or name another file to begin anew")
        if line["format"] != FORMAT:
            raise self._error(f"has format {line['format']}", f"take a version that reads it; this reads {FORMAT}")
        for name, value in asdict(self.heading).items():
            if name not in line or line[name] != value:
                raise self._error(
                    f"is of another questioning: its {name} is {ascii(line.get(name))[:80]}, and not {value!r}",
                    "name another file",
                )

    def _accept_line(self, line: dict[str, Any]) -> bool:
        """Whether a line is as it should be; if so, it counts."""
        if line.keys() != {"question", "image", "answer", "at"} or not isinstance(line["at"], str):
            return False
        if self._find_error(line) is not None:
            return False
        self.responses[line["question"]], self.images[line["question"]] = line["answer"], line["image"]
        return True

    def _find_error(self, line: Mapping[str, Any]) -> str | None:
        """What is wrong with an answer, if anything is."""
        index, image, response = line["question"], line["image"], line["answer"]
        pool = self.heading.questions + self.heading.decoys
        if type(index) is not int or not 0 <= index < pool:
            return f"of which there are {pool}"
        if index in self.responses:
            return "which was answered before"
        if response is not None and (type(response) is not int or not 0 <= response < self.heading.classes):
            return f"as there are {self.heading.classes} classes"
        if not isinstance(image, str) or len(image) != 64 or set(image) - set("0123456789abcdef"):
            return "whose image has no digest"
        return None

    def _write(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            size = os.fstat(self._file).st_size
            if os.write(self._file, content) < len(content):
                os.ftruncate(self._file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            if is_disk_full_error(error):
                raise disk_full_error(self.path.parent) from None
            raise self._error(
                f"can't be written ({error.strerror})", "see to the disk, then run the same command again to go on"
            ) from None

    def _error(self, what: str, remedy: str) -> FingerprintError:
        return FingerprintError(f"The transcript {self.path} {what}: {remedy}.")


def path_for_base(path: str | Path, base_id: str, first: str) -> Path:
    """The file of one base, where those of several belong together: the path itself for the first of them."""
    return Path(path) if base_id == first else Path(f"{path}.{base_id}")


def read_transcript(path: str | Path) -> tuple[Heading, dict[int, int | None]]:
    """A transcript that is there: what it is about, and its answers.

    Raises:
        [`FingerprintError`]: if there is none, or it is damaged.
    """
    try:
        content = read_bounded(path, MAX_TRANSCRIPT, "a transcript", FingerprintError)
        first = parse_json(content.partition(b"\n")[0][:MAX_LINE], MAX_LINE_VALUES, strict=True)
        heading = Heading(**{each.name: first[each.name] for each in fields(Heading)})
        texts = (heading.suspect, heading.base, heading.digest)
        counts = (heading.questions, heading.decoys, heading.classes, heading.recipients)
        if {type(each) for each in texts} != {str} or {type(each) for each in counts} != {int}:
            raise TypeError
        if type(heading.alpha) not in (int, float) or type(heading.share) not in (int, float, type(None)):
            raise TypeError
    except OSError as error:
        raise FingerprintError(f"The transcript {path} can't be read ({error.strerror}): name its file.") from None
    except (ValueError, KeyError, TypeError):
        raise FingerprintError(f"{path} is no transcript, or is damaged in line 1: restore it.") from None
    with Transcript(path, heading) as transcript:
        return heading, dict(transcript.responses)


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of an image's pixels, row by row, in hexadecimal digits.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`): `uint8`.
    """
    return sha256(np.ascontiguousarray(image)).hexdigest()


def pool_digest(images: Sequence[str]) -> str:
    """SHA-256 over those of the images, in hexadecimal digits.

    Args:
        images (sequence of `str`): the digest of each image of the pool, in order, as [`image_digest`] gives it.
    """
    return sha256(b"".join(map(bytes.fromhex, images))).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere folders can't be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
