"""Limits on untrusted inputs, and helpers that enforce them.

Files, folders, repos, packs and services may be hostile. Each limit is checked before an input is expanded: the size
before a file is read, the header before pixels or tensors are made, the count before a loop. Together they keep one
input under 1 GB of memory and 10 s. All are far above what honest inputs need.
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
# objects of one entry 66).
MAX_JSON = 16 * MB  # bytes of a configuration
MAX_JSON_VALUES = 4_000_000  # commas, colons and opening brackets: 280 MB at most; a large tokenizer has 2 million

MAX_CONFIG_VALUES = 1_000_000  # of a configuration, which cleaning copies: 22,000 classes take 100,000

# Weights. A header entry has about 80 bytes; models of 100,000 tensors are the largest mixtures of experts.
MAX_HEADER = 16 * MB  # bytes of a safetensors header
MAX_HEADERS = 64 * MB  # of all shards of one model together, and of all models in one folder
MAX_INDEX = 10 * MB  # bytes of an index of shards
MAX_RANGE_BYTES = 1 << 25  # bytes of one range request
MAX_SHARDS = 500  # files that one index may name; all are open at once
MAX_TENSORS = 100_000  # of one model, all files together
MAX_NAME = 1_024  # characters of a tensor's name
MAX_SETS = 32  # sets of weights in one folder
MAX_DIMENSIONS = 64  # of a tensor, as in numpy
MAX_EXPANSION = 256 * MB  # bytes that a file's tensors may take beyond the file's own size
MAX_EXPANSION_RATIO = 4  # tensors to file size of a pickle, whose tensors may be views of one memory
MAX_PICKLE_STEPS = 1_000_000  # a tensor takes 40 steps, a pickled module 600; a step takes up to 100 bytes
MAX_NESTED_PARTS = 1_000_000  # nested values visited in a PyTorch file
MAX_PICKLE_TEXT = 64 * MB  # bytes of strings in a pickle
MAX_DIRECTORY = 3 * MB  # bytes of a zip's central directory: 40,000 members
MAX_ZIP_RATIO = 16  # unpacked to packed size of a compressed member of a weight file, and of an archive
MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_DEPTH = 40_000, 3  # files in an archive, and archives in archives

# Folders and the files next to weights.
MAX_FILE = 64 * MB  # bytes of a file copied along with the weights: tokenizers have up to 35 MB
MAX_CARD = 2 * MB  # bytes of a model card
MAX_FRONT_MATTER = 128_000  # characters of its front matter, which takes 20 s a megabyte to parse
MAX_LIST = 16 * MB  # bytes of a list that a user gives: labels, recipients, keys
MAX_FILES_PER_FOLDER, MAX_FILES_IN_FOLDERS = 1_000, 10_000  # files in a folder below the top, and in all of them

# Models built to run.
MAX_SIDE = 2048  # pixels of an input
MAX_CONFIG_NUMBER = 1 << 20  # any number in a configuration
MAX_CLASSES = 1 << 20  # outputs of a model
MAX_CONFIG_LIST, MAX_CONFIG_DEPTH = 256, 3

# Images. Decoding and rotating one takes about 11 bytes a pixel: 50 megapixels take 550 MB.
MAX_IMAGE = 64 * MB  # bytes of an image file
MAX_PIXELS = 50_000_000
MAX_ASPECT = 16  # longer to shorter side: resizing the shorter side of a stripe would make a huge image
MAX_SCANS = 200  # of a progressive JPEG, each of which passes over all pixels; encoders write about 10

# Black-box tests.
MAX_RESPONSE = 16 * MB  # bytes of a service's response, unpacked
MAX_TRANSCRIPT = 32 * MB  # bytes: 160,000 responses of 200 bytes
MAX_LINE = 64_000  # bytes of a transcript's header line, which has a few hundred
MAX_LINE_VALUES = 1_000  # values in one line of a transcript
MAX_PROOF = 16 * MB  # bytes of a proof: 65,536 responses take 3 MB
MAX_POOL = 4_096  # trigger images and decoys of a base: each takes 0.15 MB once drawn; 180 are usual
MAX_TRIGGERS = 1 << 16  # trigger images that a proof or a trigger set may name
MAX_ACCUSED = 10_000  # recipients accused in one proof: each takes 0.2 ms or more
MAX_SUSPECT_NAME = 4_096  # characters
MAX_PROOF_LABELS = 1 << 24  # accused times trigger images of a proof: each label is derived, a million in 0.3 s

# Vaults.
MAX_PACK = 256 * MB  # bytes of a vault on the Hub, which is in memory twice: encrypted and decrypted
MAX_IDENTITY = 1 * MB  # bytes of an identity file, which has a few hundred
MAX_LOG_WORK = 22  # log2 of scrypt's N to open one: 4 GB and some 10 seconds; the age command line's own limit


def read_bounded(
    path: str | Path, limit: int, what: str, error: type[FingerprintError] = CheckpointError, allow_pipe: bool = False
) -> bytes:
    """The bytes of a file no larger than `limit`. Never blocks on a special file.

    Args:
        path (`str` or `Path`): the file.
        limit (`int`): maximum size in bytes.
        what (`str`): kind of file with its article for the error, such as `"a configuration"`.
        error (`type`, *optional*, defaults to [`CheckpointError`]): class of the error.
        allow_pipe (`bool`, *optional*, defaults to `False`): whether `path` may be a pipe, for files that users name.

    Raises:
        [`FingerprintError`]: of type `error`, if the file is too large or not a regular file.
        [`OSError`]: if it can't be read.
    """
    path = Path(path)
    kind = path.stat().st_mode
    # a folder passes here: opening it raises the right OSError
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or (allow_pipe and stat.S_ISFIFO(kind))):
        raise error(f"{printable(str(path))} is not a regular file: replace it with the file itself.")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > limit else stream.read(limit + 1)
    if max(size, len(content)) > limit:
        raise error(too_large_message(path, max(size, len(content)), limit, what))
    return content


def too_large_message(path: str | Path, size: int, limit: int, what: str) -> str:
    """The error message for a file that is too large."""
    sizes = f"{megabytes(size, round_up=True)} MB, and {what} may have {megabytes(limit)} MB"
    return f"{printable(str(path))} has {sizes}: check that it is the right file, or download it again."


def megabytes(count: int, round_up: bool = False) -> str:
    """Bytes as text in MB, rounded down. With `round_up`, a size above a limit never looks equal to it."""
    rounded = math.ceil(count / 1e5) if round_up else count // 100_000
    return f"{rounded / 10:g}"


def parse_json(content: bytes | str, values: int = MAX_JSON_VALUES, strict: bool = False) -> Any:
    """The parsed value of a JSON text of bounded memory cost.

    Args:
        content (`bytes` or `str`): the text.
        values (`int`, *optional*): maximum number of commas, colons and opening brackets.
        strict (`bool`, *optional*, defaults to `False`): rejects NaN, infinity and duplicate names in an object, which
            parsers resolve differently.

    Raises:
        [`ValueError`]: if `content` is not JSON, is nested too deep or has too many values.
    """
    check_json_values(content, values)
    try:
        if strict:
            return json.loads(content, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
        return json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def check_json_values(content: bytes | str, values: int = MAX_JSON_VALUES) -> None:
    """Checks, before any library parses it, that a JSON text takes bounded memory.

    Raises:
        [`ValueError`]: if it has more commas, colons and opening brackets than `values`.
    """
    marks: tuple[Any, ...] = (b",", b":", b"[", b"{") if isinstance(content, bytes) else (",", ":", "[", "{")
    if sum(map(content.count, marks)) > values:
        raise ValueError(f"holds more than {values:,} values")


def _refuse(constant: str) -> Any:
    raise ValueError(f"holds {constant}")


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError("holds a number that is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("holds a name twice")
    return found
