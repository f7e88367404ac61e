"""What an input may cost: every limit on what comes from outside, and the helpers that hold to them.

Files, folders, repos, packs and services may be hostile. Each limit is checked before an input is expanded: by a
file's size before it is read, by a header before pixels or tensors are made of it, by a count before a loop over it.
Together they keep one input under 1 GB of memory and 10 s, and all of them are far above what honest inputs need.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from hf_fingerprint.errors import CheckpointError, FingerprintError
from hf_fingerprint.printable import printable


MB = 1_000_000

# JSON. A parsed value takes up to 70 bytes for each comma, colon and bracket of its text (measured: empty objects 38,
# objects of one entry 66), whatever the text's length.
MAX_JSON = 16 * MB  # bytes of a configuration
MAX_JSON_VALUES = 4_000_000  # commas, colons and opening brackets: 280 MB at most; a large tokenizer has 2 million

MAX_CONFIG_VALUES = 1_000_000  # of a configuration, which is copied as it is cleaned: 22,000 classes take 100,000

# Weights. A header entry has about 80 bytes; models of 100,000 tensors are the largest mixtures of experts.
MAX_HEADER = 16 * MB  # bytes of a safetensors header
MAX_HEADERS = 64 * MB  # of all shards of one model together, of all models in one folder
MAX_INDEX = 10 * MB  # bytes of an index of shards
MAX_RANGE_BYTES = 1 << 25  # bytes that one request for a range of a file asks for
MAX_SHARDS = 500  # files that one index may name; all are open at once
MAX_TENSORS = 100_000  # of one model, all files together
MAX_NAME = 1_024  # characters of a tensor's name
MAX_SETS = 32  # sets of weights in one folder
MAX_DIMENSIONS = 64  # of a tensor, as in numpy
MAX_EXPANSION = 256 * MB  # bytes that a file's tensors may take beyond the file's own size
MAX_EXPANSION_RATIO = 4  # how often a pickle's tensors may take its file's size, as views of one memory do
MAX_PICKLE_STEPS = 1_000_000  # a tensor takes 40 steps, a module saved whole 600; a step takes up to 100 bytes
MAX_NESTED_PARTS = 1_000_000  # parts of parts in a file of PyTorch's that are looked at
MAX_PICKLE_TEXT = 64 * MB  # bytes of names and other texts in a pickle
MAX_DIRECTORY = 3 * MB  # bytes of a zip's list of members: 40,000 of them
MAX_ZIP_RATIO = 16  # how often a compressed member of a weight file may hold its own size

# Folders and what goes along with weights.
MAX_FILE = 64 * MB  # bytes of a file that is handed on with a copy: tokenizers have up to 35 MB
MAX_CARD = 2 * MB  # bytes of a model card
MAX_FRONT_MATTER = 128_000  # characters of its front matter, which takes 20 s a megabyte to read
MAX_LIST = 16 * MB  # bytes of a list that a user gives: labels, recipients, keys
MAX_FILES_PER_FOLDER, MAX_FILES_IN_FOLDERS = 1_000, 10_000  # files of a folder below the top, of all of them

# Models that are built to run.
MAX_SIDE = 2048  # pixels of an input
MAX_CONFIG_NUMBER = 1 << 20  # any number in a configuration
MAX_CLASSES = 1 << 20  # outputs of a model
MAX_CONFIG_LIST, MAX_CONFIG_DEPTH = 256, 3

# Images. Decoding and turning one takes about 11 bytes a pixel: 50 megapixels take 550 MB.
MAX_IMAGE = 64 * MB  # bytes of an image file
MAX_PIXELS = 50_000_000
MAX_ASPECT = 16  # longer to shorter side: scaled by its shorter side, a stripe would grow without end
MAX_SCANS = 200  # of a progressive JPEG, each of which passes over all pixels; encoders write about 10

# Black-box tests.
MAX_RESPONSE = 16 * MB  # bytes of a service's reply, unpacked
MAX_TRANSCRIPT = 32 * MB  # bytes: 160,000 answers of 200 bytes
MAX_LINE = 64_000  # bytes of its heading, which has some hundred
MAX_LINE_VALUES = 1_000  # of one line of it
MAX_PROOF = 16 * MB  # bytes of a proof: 65,536 answers take 3 MB
MAX_POOL = 4_096  # trigger images and decoys of a base: drawn, each takes 0.15 MB; 180 are usual
MAX_TRIGGERS = 1 << 16  # that a proof or a trigger set may name
MAX_ACCUSED = 10_000  # of one proof: each takes 0.2 ms and more
MAX_SUSPECT_NAME = 4_096  # characters
MAX_PROOF_LABELS = 1 << 24  # accused times questions of a proof: each label is derived anew, a million in 0.3 s

# Vaults.
MAX_PACK = 256 * MB  # bytes of a vault on the Hub: it is held in memory twice, encrypted and opened
MAX_IDENTITY = 1 * MB  # bytes of an identity file, which has some hundred
MAX_LOG_WORK = 22  # log2 of scrypt's N to open one: 4 GB and some 10 seconds; the age command line's own limit


def read_bounded(
    path: str | Path, limit: int, what: str, error: type[FingerprintError] = CheckpointError, allow_pipe: bool = False
) -> bytes:
    """A whole file, if it is no larger than allowed. Never blocks on something that isn't a file.

    Args:
        path (`str` or `Path`): the file.
        limit (`int`): how many bytes it may have.
        what (`str`): what it should be, with its article, such as `"a configuration"`.
        error (`type`, *optional*, defaults to [`CheckpointError`]): what is raised if it is larger.
        allow_pipe (`bool`, *optional*, defaults to `False`): whether it may be a pipe, as for what a user names.

    Raises:
        [`FingerprintError`]: of type `error`, if it is larger or no regular file.
        [`OSError`]: if it can't be read.
    """
    path = Path(path)
    kind = path.stat().st_mode
    if not (
        stat.S_ISREG(kind) or stat.S_ISDIR(kind) or (allow_pipe and stat.S_ISFIFO(kind))
    ):  # opening a folder says so
        raise error(f"{_shown(path)} is not a regular file: put the file itself in its place.")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > limit else stream.read(limit + 1)
    if max(size, len(content)) > limit:
        raise error(too_large_message(path, max(size, len(content)), limit, what))
    return content


def too_large_message(path: str | Path, size: int, limit: int, what: str) -> str:
    """The sentence that refuses a file for its size."""
    return (
        f"{_shown(path)} has {megabytes(size, round_up=True)} MB, and {what} may have {megabytes(limit)} MB: check that it "
        f"is the right file, or get it again."
    )


def megabytes(count: int, round_up: bool = False) -> str:
    """Bytes in MB, rounded so that what is needed (`round_up`) never looks like what is allowed."""
    return f"{(math.ceil if round_up else math.floor)(count / 1e5) / 10:g}"


def parse_json(content: bytes | str, values: int = MAX_JSON_VALUES, strict: bool = False) -> Any:
    """What a JSON text says, unless it is built to take memory.

    Args:
        content (`bytes` or `str`): the text.
        values (`int`, *optional*): how many commas, colons and opening brackets it may have.
        strict (`bool`, *optional*, defaults to `False`): refuses NaN and infinity, and names that come twice in an
            object, of which readers take the one or the other.

    Raises:
        [`ValueError`]: if it is not JSON, is nested too deep or has too many values.
    """
    check_json_values(content, values)
    try:
        if strict:
            return json.loads(
                content,
                parse_constant=_reject_constant,
                parse_float=_parse_finite,
                object_pairs_hook=_reject_duplicates,
            )
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def check_json_values(content: bytes | str, values: int = MAX_JSON_VALUES) -> None:
    """Refuses a JSON text that takes more memory than allowed, before it is parsed by whatever library.

    Raises:
        [`ValueError`]: if it has more commas, colons and opening brackets than `values`.
    """
    marks: tuple[Any, ...] = (b",", b":", b"[", b"{") if isinstance(content, bytes) else (",", ":", "[", "{")
    if sum(map(content.count, marks)) > values:
        raise ValueError(f"holds more than {values:,} values")


def _reject_constant(constant: str) -> Any:
    raise ValueError(f"holds {constant}")


def _parse_finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError("holds a number beyond all bounds")
    return value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("holds a name twice")
    return found


def _shown(path: str | Path) -> str:
    return printable(str(path))
