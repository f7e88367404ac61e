"""What the record of a base may hold. A record's seal shows that nobody changed it since; whoever made it may have
written anything, so what this package would not make is not believed."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from hf_fingerprint.checkpoints.dtypes import READABLE
from hf_fingerprint.checkpoints.naming import HUB_ID
from hf_fingerprint.codes import check_alpha, make_codebook
from hf_fingerprint.errors import CodeError
from hf_fingerprint.vault.faults import Fault, RowError
from hf_fingerprint.vault.records import Base


MAX_SOURCE_LENGTH, MAX_NAME_LENGTH, MAX_TEXT_LENGTH = 4096, 1024, 1024
MAX_COUNT = 1 << 48  # of whatever is counted
_DTYPE_MAX = {"F16": 65504.0, "F8_E4M3": 448.0, "F8_E5M2": 57344.0}  # weight of a dtype; of others, of float32
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT64_MAX = float(np.finfo(np.float64).max)
_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REVISION = re.compile(r"[\w./-]{1,200}")


def check_base(base: Base, is_new: bool = False) -> None:
    """Refuses a record of a base that this package would not make.

    Args:
        base ([`Base`]): what the record says.
        is_new (`bool`, *optional*, defaults to `False`): whether it is new to this vault; no amplitude may be
            negative then, which records of long ago can hold and which mark nothing.

    Raises:
        [`VaultError`]: by the base's name, with what is wrong.
    """
    found = base_problem(base, is_new)
    if found is not None:
        raise base_row_error(base.base_id, found)


def base_problem(base: Base, is_new: bool = False) -> str | None:
    """What is wrong with a record of a base, as a clause; `None` if nothing is. See [`check_base`]."""
    return next(_base_problems(base, is_new), None)


def base_row_error(base_id: Any, fault: str) -> RowError:
    """What is said of a record that holds what it can't."""
    remedy = "restore a backup of the vault, and don't merge with one that holds it"
    return RowError(Fault("bases", short_repr(base_id), f"can't be used, {fault}"), remedy)


def short_repr(value: Any) -> str:
    """A value from a record, on one short line."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text[:80])
    return text[:60]


def _base_problems(base: Base, is_new: bool) -> Iterator[str]:
    """What is wrong with a record, one thing after another; each may take for granted that those before are right."""
    if not is_single_line(base.base_id, 64) or not is_single_line(base.content_hash, 128):
        yield "its id or content hash is none"
    if not is_single_line(base.source, MAX_SOURCE_LENGTH) or not _is_source(base.source):
        yield f"its source {short_repr(base.source)} is neither an absolute path nor a Hub id"
    if not (base.revision is None or (isinstance(base.revision, str) and _REVISION.fullmatch(base.revision))):
        yield f"its revision {short_repr(base.revision)} is no commit"
    if not (base.replaces is None or is_single_line(base.replaces, 64)):
        yield f"it replaces {short_repr(base.replaces)}, which is no base"
    if not (base.copy_of is None or is_single_line(base.copy_of, 64)):
        yield f"it is a copy of {short_repr(base.copy_of)}, which is no base"
    yield from _code_problems(base)
    yield from _tensor_problems(base)
    yield from _carrier_problems(base, is_new)
    yield from _calibration_problems(base)


def _code_problems(base: Base) -> Iterator[str]:
    try:
        check_alpha(base.alpha if _is_number(base.alpha) else float("nan"))
    except CodeError:
        yield f"its alpha is {short_repr(base.alpha)} and not above 0 and at most 0.05"
    for name in ("length", "coalition", "recipients_planned"):
        if not _is_count(getattr(base, name), 1):
            yield f"its {name} is {short_repr(getattr(base, name))} and not 1 or more"
    if not _is_count(base.certified, 0) or base.certified > base.recipients_planned:
        yield f"it is certified for {short_repr(base.certified)} colluders of {base.recipients_planned} recipients"
    if not is_single_line(base.certified_by, MAX_TEXT_LENGTH):
        yield "it does not say how it was certified"
    try:
        make_codebook(base.family, base.length, base.coalition, base.secret)
    except (CodeError, TypeError) as error:
        yield f"its code is none ({str(error).rstrip('.')})"


def _is_shape(shape: tuple[Any, ...]) -> bool:
    """Whether a tensor may have this shape."""
    return all(isinstance(size, int) for size in shape) and _is_shape_of_numbers(shape)


@lru_cache(1 << 12)
def _is_shape_of_numbers(shape: tuple[int, ...]) -> bool:
    """The same of whole numbers; most tensors of most bases share a few."""
    return len(shape) <= 32 and all(_is_count(size, 0) for size in shape)


def _tensor_problems(base: Base) -> Iterator[str]:
    for name, (dtype, shape, digest) in base.tensors.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_LENGTH:
            yield f"it names a tensor {short_repr(name)}"
        if not (isinstance(dtype, str) and len(dtype) <= 32 and isinstance(digest, str) and len(digest) <= 128):
            yield f"its tensor {short_repr(name)} has no dtype or digest"
        if not _is_shape(shape):
            yield f"its tensor {short_repr(name)} has the shape {short_repr(list(shape))}"


def _carrier_problems(base: Base, is_new: bool) -> Iterator[str]:
    if len({carrier.name for carrier in base.carriers}) < len(base.carriers):
        yield "a carrier is named twice"
    for name, eps, amplitude in ((c.name, c.eps, c.amplitude) for c in base.carriers):
        record = base.tensors[name]
        if record.dtype not in READABLE or not record.shape:
            yield f"its tensor {short_repr(name)} can't carry a mark"
        if not _is_number(eps) or not 0 < eps <= 1:
            yield f"the amplitude of {short_repr(name)} is {short_repr(eps)} of its rows' size and not above 0 and at most 1"
        if amplitude.shape != record.shape[:1]:
            yield f"{short_repr(name)} has {record.shape[0]} rows and amplitudes for {len(amplitude)}"
        largest = 1.001 * eps * _DTYPE_MAX.get(record.dtype, _FLOAT32_MAX)
        low, high = (float(amplitude.min()), float(amplitude.max())) if len(amplitude) else (0.0, 0.0)
        if not -largest <= low <= high <= largest or (is_new and low < 0):  # NaN neither
            yield f"{short_repr(name)} has amplitudes that no mark has"


def _calibration_problems(base: Base) -> Iterator[str]:
    measured = asdict(base.calibration)
    counts = {name: measured.pop(name) for name in ("images", "decisions", "agreeing")}
    for name in ("inputs", "output"):
        if not (is_single_line(measured[name], 64) or (name == "output" and measured[name] is None)):
            yield f"its calibration's {name} is {short_repr(measured[name])}"
        del measured[name]
    for name, count in counts.items():
        if not (_is_count(count, 0) or (name != "images" and count is None)):
            yield f"its calibration counts {short_repr(count)} {name}"
    if base.compact is not None:
        measured |= asdict(base.compact)
    for name, value in measured.items():
        needed = name in ("max_kl", "share", "spread_score")
        if not (_is_number(value) or (value is None and not needed)):
            yield f"its calibration's {name} is {short_repr(value)} and no number"
    if not 0 < base.calibration.max_kl <= 1:
        yield f"its budget is {short_repr(base.calibration.max_kl)} nats and not above 0 and at most 1"


def _is_source(source: str) -> bool:
    absolute = PurePosixPath(source).is_absolute() or PureWindowsPath(source).is_absolute()
    return absolute or (HUB_ID.fullmatch(source) is not None and "@" not in source)


def is_single_line(value: Any, longest: int) -> bool:
    """Whether a value is text on one line that shows as it is."""
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        return False
    return value.isprintable() or not any(
        c in _BIDIRECTIONAL or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FLOAT64_MAX <= value <= _FLOAT64_MAX


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_COUNT
