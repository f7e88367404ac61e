"""The transcript of a query: every image sent and its response, stored one by one and readable later.

The file is UTF-8 text with one JSON object a line. Each line is written whole and synced before the next image is
sent.

* The first line is the heading: `format` (1), `created` (ISO 8601, UTC), `suspect` (its name, without secrets), `base`
  (its id), `digest` (SHA-256, in hexadecimal digits, over the 32-byte SHA-256 of each image of the pool, in order),
  `questions` and `decoys` (their numbers; the pool is the trigger images and then the decoys), `classes`, `alpha`,
  `share` (the assigned share) and `recipients` (the number tested).
* Each further line is a response, in the order of arrival: `question` (the image's index in the pool), `image`
  (SHA-256 of its pixels, row by row, three bytes each), `answer` (the predicted class, or `null` without a usable
  response), `at` (the time).

With several bases, each has a file with a heading of its own: `FILE` for the first base in the vault's order and
`FILE.<base id>` for each other. Their alphas are shares of the query's.

A crash may leave an incomplete last line. It is cut off when the file is opened again, and that response is lost.
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

from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error, sync
from hf_fingerprint.checkpoints.limits import MAX_LINE, MAX_LINE_VALUES, MAX_TRANSCRIPT, parse_json, read_bounded
from hf_fingerprint.errors import FingerprintError


FORMAT = 1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)  # keeps line ends on Windows


@dataclass(frozen=True)
class Heading:
    """The subject of a query. A transcript resumes only a query with the same heading.

    The field names are those of the file.

    Attributes:
        suspect (`str`): the suspect's name, without secrets.
        base (`str`): the base's id.
        digest (`str`): of the pool; see [`pool_digest`].
        questions (`int`): the number of trigger images.
        decoys, classes (`int`): the numbers of decoys and classes.
        alpha (`float`): the bound on accusing any innocent.
        share (`float` or `None`): the probability that a trigger is assigned to a recipient.
        recipients (`int`): the number of recipients tested.
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
    """A transcript that is being written. Close it, or use it as a context manager.

    Args:
        path (`str` or `Path`): its file. An existing one is resumed.
        heading ([`Heading`]): the subject of the query.

    Attributes:
        responses (`dict[int, int | None]`): the predicted class of each image so far, in the order of arrival.
        images (`dict[int, str]`): the digest of each image; see [`image_digest`].

    Raises:
        [`StorageError`]: if the disk is full.
        [`FingerprintError`]: if the file can't be read or written, or is no intact transcript of this query.
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
            raise self._error(f"can't be written ({error.strerror})", "choose another path") from None
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __repr__(self) -> str:
        return f"Transcript({self.path}, {len(self.responses)} responses)"

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, index: int, image: str, response: int | None) -> None:
        """Appends a response and syncs it to the disk.

        Args:
            index (`int`): the image's index in the pool.
            image (`str`): the image's digest; see [`image_digest`].
            response (`int` or `None`): the predicted class.

        Raises:
            [`FingerprintError`]: if there is no such image or class, or the image has a response already.
            [`StorageError`]: if the disk is full. The response is not stored then, and the image may be sent again.
        """
        line = {"question": index, "image": image, "answer": response, "at": _now()}
        if (problem := self._find_error(line)) is not None:
            raise self._error(f"can't store response {response} to image {index}, {problem}", "query another image")
        self._write(line)
        self.responses[index], self.images[index] = response, image

    def close(self) -> None:
        """Closes the file. Open it again to resume."""
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
            raise self._error("holds more responses than images", "restore it, or name another file")
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
                raise self._error(f"is damaged in line {number}", "restore it, or name another file to start again")
        if rest:
            os.ftruncate(self._file, len(content) - len(rest))

    def _begin(self, rest: bytes) -> None:
        """Writes the heading. It replaces the rest of an interrupted heading, and no other content."""
        heading = {"format": FORMAT, "created": _now(), **asdict(self.heading)}
        whole, date = json.dumps(heading, allow_nan=False).encode(), heading["created"].encode()
        before, after = whole.index(date), whole.index(date) + len(date)
        if not (whole[:before] + whole[after:]).startswith(rest[:before] + rest[after:]):
            raise self._error("is not a transcript of this query", "name another file")
        if rest:
            os.ftruncate(self._file, 0)
        self._write(heading)
        if os.name == "posix":  # elsewhere folders can't be opened
            sync(self.path.parent)

    def _check_heading(self, line: Any) -> None:
        if not isinstance(line, dict) or type(line.get("format")) is not int:
            raise self._error("is damaged in line 1", "restore it, or name another file to start again")
        if line["format"] != FORMAT:
            problem = f"has format {line['format']}, and this version reads {FORMAT}"
            raise self._error(problem, "upgrade hf-fingerprint")
        for name, value in asdict(self.heading).items():
            if name not in line or line[name] != value:
                found = f"its {name} is {ascii(line.get(name))[:80]}, and not {value!r}"
                raise self._error(f"is of another query: {found}", "name another file")

    def _accept_line(self, line: dict[str, Any]) -> bool:
        """Counts the response in a line; returns `False` if the line is not valid."""
        if line.keys() != {"question", "image", "answer", "at"} or not isinstance(line["at"], str):
            return False
        if self._find_error(line) is not None:
            return False
        self.responses[line["question"]], self.images[line["question"]] = line["answer"], line["image"]
        return True

    def _find_error(self, line: Mapping[str, Any]) -> str | None:
        """The problem with a response as the end of a sentence, or `None`."""
        index, image, response = line["question"], line["image"], line["answer"]
        pool = self.heading.questions + self.heading.decoys
        if type(index) is not int or not 0 <= index < pool:
            return f"as there are {pool} images"
        if index in self.responses:
            return "as the image has a response already"
        if response is not None and (type(response) is not int or not 0 <= response < self.heading.classes):
            return f"as there are {self.heading.classes} classes"
        if not isinstance(image, str) or len(image) != 64 or set(image) - set("0123456789abcdef"):
            return "as the image has no digest"
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
            remedy = "check the disk, then run the command again to resume"
            raise self._error(f"can't be written ({error.strerror})", remedy) from None

    def _error(self, problem: str, remedy: str) -> FingerprintError:
        return FingerprintError(f"The transcript {self.path} {problem}: {remedy}.")


def path_for_base(path: str | Path, base_id: str, first: str) -> Path:
    """The file of one base of several: `path` for the first base, else `path.<base id>`."""
    return Path(path) if base_id == first else Path(f"{path}.{base_id}")


def read_transcript(path: str | Path) -> tuple[Heading, dict[int, int | None]]:
    """The heading and the responses of a transcript.

    Raises:
        [`FingerprintError`]: if the file can't be read, or is not a transcript or damaged.
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
        raise FingerprintError(f"{path} is not a transcript, or is damaged in line 1: restore it.") from None
    with Transcript(path, heading) as transcript:
        return heading, dict(transcript.responses)


def image_digest(image: np.ndarray) -> str:
    """SHA-256 of an image `(height, width, 3)`, `uint8`, row by row, in hexadecimal digits."""
    return sha256(np.ascontiguousarray(image)).hexdigest()


def pool_digest(images: Sequence[str]) -> str:
    """SHA-256 over the digests of a pool's images, in order, in hexadecimal digits; see [`image_digest`]."""
    return sha256(b"".join(map(bytes.fromhex, images))).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
