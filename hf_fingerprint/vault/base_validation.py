"""Checks of a base's record.

The seal of a record proves that it is unchanged, not that its author was honest. So every value must be one that this
package could have written.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.naming import HUB_ID, IN_MEMORY
from hf_fingerprint.codes import check_alpha, make_codebook
from hf_fingerprint.errors import CodeError
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Ancestor, Base


MAX_SOURCE_LENGTH, MAX_NAME_LENGTH, MAX_TEXT_LENGTH = 4096, 1024, 1024
MAX_COUNT = 1 << 48
_DTYPE_MAX = {"F16": 65504.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}  # other dtypes: that of float32
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT64_MAX = float(np.finfo(np.float64).max)
_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REVISION = re.compile(r"[\w./-]{1,200}")
_HASH = re.compile(r"[0-9a-f]{64}")


def check_base(base: Base, is_new: bool = False) -> None:
    """Raises an error if a base's record holds what this package would not write.

    Args:
        base ([`Base`]): the base.
        is_new (`bool`, *optional*, defaults to `False`): whether the base is new to this vault. Then no amplitude may
            be negative; old records may have negative ones, which mark nothing.

    Raises:
        [`VaultError`]: with the base's id and what is wrong.
    """
    found = base_problem(base, is_new)
    if found is not None:
        raise base_row_error(base.base_id, found)


def base_problem(base: Base, is_new: bool = False) -> str | None:
    """What is wrong with a base's record, as a clause, or `None`. See [`check_base`]."""
    return next(_base_problems(base, is_new), None)


def base_row_error(base_id: Any, problem: str) -> RowError:
    """The error for a base's record with invalid values."""
    remedy = "restore a backup of the vault, and don't merge vaults that hold this record"
    return RowError(Fault("bases", short_repr(base_id), f"can't be used, {problem}"), remedy)


def short_repr(value: Any) -> str:
    """A value as at most 60 printable characters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text[:80])
    return text[:60]


def _base_problems(base: Base, is_new: bool) -> Iterator[str]:
    """Everything that is wrong with a record. Each check relies on the ones before it."""
    if not is_single_line(base.base_id, 64) or not is_single_line(base.content_hash, 128):
        yield "its id or content hash is invalid"
    if not _is_source(base.source):
        yield f"its source {short_repr(base.source)} is no absolute path, Hub id or model in memory"
    if not _is_revision(base.revision):
        yield f"its revision {short_repr(base.revision)} is not a commit"
    if not (base.replaces is None or is_single_line(base.replaces, 64)):
        yield f"it replaces {short_repr(base.replaces)}, which is not a base id"
    if not (base.copy_of is None or is_single_line(base.copy_of, 64)):
        yield f"it is a copy of {short_repr(base.copy_of)}, which is not a base id"
    if base.ancestor is not None:
        yield from _ancestor_problems(base.ancestor, base.content_hash)
    yield from _code_problems(base)
    yield from _tensor_problems(base)
    yield from _carrier_problems(base, is_new)
    yield from _calibration_problems(base)


def _code_problems(base: Base) -> Iterator[str]:
    try:
        check_alpha(base.alpha if _is_number(base.alpha) else float("nan"))
    except CodeError:
        yield f"its alpha is {short_repr(base.alpha)} and must be above 0 and at most 0.05"
    for name in ("length", "coalition", "expected_recipients"):
        if not _is_count(getattr(base, name), 1):
            yield f"its {name} is {short_repr(getattr(base, name))} and must be at least 1"
    if not _is_count(base.certified, 0) or base.certified > base.expected_recipients:
        yield f"it is certified for {short_repr(base.certified)} colluders of {base.expected_recipients} recipients"
    if not is_single_line(base.certified_by, MAX_TEXT_LENGTH):
        yield "its certification is missing"
    try:
        make_codebook(base.family, base.length, base.coalition, base.secret)
    except (CodeError, TypeError) as error:
        yield f"its code is invalid ({str(error).rstrip('.')})"


def _is_shape(shape: tuple[Any, ...]) -> bool:
    """Whether a tensor may have this shape."""
    return all(isinstance(size, int) for size in shape) and _is_integer_shape(shape)


@lru_cache(1 << 12)
def _is_integer_shape(shape: tuple[int, ...]) -> bool:
    """[`_is_shape`] for integers, cached since most tensors share a few shapes."""
    return len(shape) <= 32 and all(_is_count(size, 0) for size in shape)


def _tensor_problems(base: Base) -> Iterator[str]:
    for name, (dtype, shape, digest) in base.tensors.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            yield f"it has a tensor with the invalid name {short_repr(name)}"
        if not (isinstance(dtype, str) and len(dtype) <= 32 and isinstance(digest, str) and len(digest) <= 128):
            yield f"its tensor {short_repr(name)} has no dtype or digest"
        if not _is_shape(shape):
            yield f"its tensor {short_repr(name)} has the shape {short_repr(list(shape))}"


def _carrier_problems(base: Base, is_new: bool) -> Iterator[str]:
    if len({carrier.name for carrier in base.carriers}) < len(base.carriers):
        yield "it lists a carrier twice"
    for name, eps, amplitude in ((c.name, c.eps, c.amplitude) for c in base.carriers):
        record = base.tensors[name]
        if record.dtype not in READABLE or not record.shape:
            yield f"its tensor {short_repr(name)} can't carry a mark"
        if not _is_number(eps) or not 0 < eps <= 1:
            yield f"the relative amplitude of {short_repr(name)} is {short_repr(eps)}, not above 0 and at most 1"
        if amplitude.shape != record.shape[:1]:
            yield f"{short_repr(name)} has {record.shape[0]} rows and amplitudes for {len(amplitude)}"
        largest = 1.001 * eps * _DTYPE_MAX.get(record.dtype, _FLOAT32_MAX)
        low, high = (float(amplitude.min()), float(amplitude.max())) if len(amplitude) else (0.0, 0.0)
        if not -largest <= low <= high <= largest or (is_new and low < 0):  # also true for NaN
            yield f"{short_repr(name)} has impossible amplitudes"


def _calibration_problems(base: Base) -> Iterator[str]:
    measured = asdict(base.calibration)
    counts = {name: measured.pop(name) for name in ("images", "decisions", "agreeing")}
    for name in ("inputs", "output"):
        if not (is_single_line(measured[name], 64) or (name == "output" and measured[name] is None)):
            yield f"its calibration's {name} is {short_repr(measured[name])}"
        del measured[name]
    for name, count in counts.items():
        if not (_is_count(count, 0) or (name != "images" and count is None)):
            yield f"its calibration's count of {name} is {short_repr(count)}"
    if base.compact is not None:
        measured |= asdict(base.compact)
    for name, value in measured.items():
        needed = name in ("max_kl", "share", "spread_score")
        if not (_is_number(value) or (value is None and not needed)):
            yield f"its calibration's {name} is {short_repr(value)} and must be a number"
    if not 0 < base.calibration.max_kl <= 1:
        yield f"its budget is {short_repr(base.calibration.max_kl)} nats and must be above 0 and at most 1"
    least = base.calibration.min_agreement
    if least is not None and not 0 < least < 1:
        yield f"its smallest agreement is {short_repr(least)} and must be above 0 and below 1"


def is_content_hash(value: Any) -> bool:
    """Whether a value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _ancestor_problems(ancestor: Ancestor, own_hash: str) -> Iterator[str]:
    if not _is_source(ancestor.source):
        yield f"its ancestor {short_repr(ancestor.source)} is no absolute path, Hub id or model in memory"
    if not _is_revision(ancestor.revision):
        yield f"its ancestor's revision {short_repr(ancestor.revision)} is not a commit"
    if not is_content_hash(ancestor.content_hash):
        yield f"its ancestor's content hash is {short_repr(ancestor.content_hash)}"
    if ancestor.content_hash == own_hash:
        yield "it is its own ancestor"


def _is_revision(revision: Any) -> bool:
    return revision is None or (isinstance(revision, str) and _REVISION.fullmatch(revision) is not None)


def _is_source(source: Any) -> bool:
    if not is_single_line(source, MAX_SOURCE_LENGTH):
        return False
    absolute = PurePosixPath(source).is_absolute() or PureWindowsPath(source).is_absolute()
    hub_id = HUB_ID.fullmatch(source) is not None and "@" not in source
    return absolute or hub_id or IN_MEMORY.fullmatch(source) is not None


def is_single_line(value: Any, max_length: int) -> bool:
    """Whether a value is one line of text, without control or bidirectional characters."""
    if not isinstance(value, str) or not 0 < len(value) <= max_length:
        return False
    return value.isprintable() or not any(
        c in _BIDIRECTIONAL or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FLOAT64_MAX <= value <= _FLOAT64_MAX


def _is_count(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= MAX_COUNT
