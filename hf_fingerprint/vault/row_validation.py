"""The rules for each row that enters a vault: it must be what this package writes.

Packs and folders come from other people, and everybody with the vault's public key can write any row. A row that
breaks the rules is refused by name, as a [`Fault`]; the others enter. Each function returns what is wrong, as a clause
that follows the row's name, or `None`. Values may have any type, since SQLite does not enforce column types.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_fingerprint.checkpoints.limits import MAX_JSON, parse_json
from hf_fingerprint.errors import VaultError
from hf_fingerprint.keys import SECRET_BYTES
from hf_fingerprint.vault.base_validation import base_problem, is_content_hash, is_single_line
from hf_fingerprint.vault.faults import RowError
from hf_fingerprint.vault.issuers import REMOVED, check_issuer_name
from hf_fingerprint.vault.records import CopyRecord, check_recipient
from hf_fingerprint.vault.rows import BASE_ID_HASH_DIGITS, STATES
from hf_fingerprint.vault.schema import base_from_row, check_trigger_set
from hf_fingerprint.vault.sealing import check_public_key


MAX_PLACE_LENGTH = 4096
MAX_SEAL_BYTES = 8192  # a recipient's name of 200 characters takes 3,500 at most
MAX_PUBLISHED_FILES = 10_000
_COPY_ID, _BASE_ID = (re.compile(rf"[0-9a-f]{{{digits}}}") for digits in (16, 12))
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_PUBLIC_KEY = re.compile(r"age1[0-9a-z]{58}")
_AGE = b"age-encryption.org/v1\n-> "


def base_row_problem(row: tuple[Any, ...], is_new: bool = False) -> str | None:
    """What is wrong with a row of table `bases`.

    Args:
        row (`tuple`): its columns.
        is_new (`bool`, *optional*, defaults to `False`): whether the base is new to a vault; see [`check_base`].
    """
    base_id, content_hash, document, _, secret, _ = row
    if not _fullmatch(_BASE_ID, base_id):
        return "has an id that is not 12 hexadecimal digits"
    if not is_content_hash(content_hash) or content_hash[:BASE_ID_HASH_DIGITS] != base_id[:BASE_ID_HASH_DIGITS]:
        return "has a content hash that is invalid or does not match its id"
    if not isinstance(secret, bytes) or len(secret) != SECRET_BYTES:
        return f"has a secret that is not {SECRET_BYTES} bytes"
    if not isinstance(document, str) or len(document) > MAX_JSON:
        return "has a document that is not text, or too long"
    try:
        base = base_from_row(row)
    except RowError as error:
        return error.fault.problem
    found = base_problem(base, is_new)
    if found is not None:
        return f"can't be used, {found}"
    for name, other in (("replaces", base.replaces), ("is a copy of", base.copy_of)):
        if other is not None and (not _fullmatch(_BASE_ID, other) or other == base_id):
            return f"{name} what is not another base's id"
    return None


def trigger_set_problem(row: tuple[Any, ...], secret: bytes) -> str | None:
    """What is wrong with a row of table `questions`, given its base's secret."""
    try:
        check_trigger_set(secret, row)
    except (VaultError, ValueError):
        return "was tampered with or damaged"
    return None if isinstance(row[1], bytes) else "is not bytes"


def copy_row_problem(record: CopyRecord) -> str | None:
    """What is wrong with the record of a written copy, as far as that shows without the tracing identity."""
    if not _fullmatch(_COPY_ID, record.copy_id):
        return "has an id that is not 16 hexadecimal digits"
    if not _fullmatch(_BASE_ID, record.base_id):
        return "has an invalid base id"
    try:
        check_recipient(record.recipient)
        record.recipient.encode()
    except (VaultError, ValueError, TypeError, AttributeError):
        return "has an invalid recipient"
    if record.state not in STATES:
        return "has an unknown state"
    if record.out != "" and not is_single_line(record.out, MAX_PLACE_LENGTH):
        return f"has a path that is not one line of at most {MAX_PLACE_LENGTH:,} characters"
    if not is_content_hash(record.content_hash):
        return "has a content hash that is not 64 hexadecimal digits"
    if not is_content_hash(record.commitment):
        return "has a commitment that is not 64 hexadecimal digits"
    if not is_timestamp(record.created):
        return "has a date that is not a time in UTC"
    sealed = record.sealed
    if not (isinstance(sealed, bytes) and len(sealed) <= MAX_SEAL_BYTES and sealed.startswith(_AGE)):
        return f"has a seal that is not an age file of at most {MAX_SEAL_BYTES:,} bytes"
    return None


def publication_problem(row: Any) -> str | None:
    """What is wrong with a row of table `publications`."""
    if not _fullmatch(_COPY_ID, row.copy_id):
        return "has an invalid copy id"
    if not _fullmatch(_REPO, row.repo) or ".." in row.repo or "--" in row.repo:
        return "has an invalid repo name"
    if row.state not in ("begun", "confirmed"):
        return "has an unknown state"
    if not (_fullmatch(_COMMIT, row.revision) if row.state == "confirmed" else row.revision is None):
        return "has a revision that is not a commit of 40 hexadecimal digits, or does not fit its state"
    if not (row.account is None or _fullmatch(_ACCOUNT, row.account)):
        return "has an invalid account name"
    if not is_timestamp(row.created):
        return "has a date that is not a time in UTC"
    return _files_problem(row.files)


def issuer_problem(public_key: Any, name: Any) -> str | None:
    """What is wrong with a row of table `issuers`; a removed one has no name."""
    if not _fullmatch(_PUBLIC_KEY, public_key) or _fails(check_public_key, public_key):
        return "is not an age public key (age1...)"
    if name != REMOVED and (not isinstance(name, str) or _fails(check_issuer_name, name)):
        return "has a name that is not 1 to 100 printable characters"
    return None


def is_timestamp(value: Any) -> bool:
    """Whether a value is a time in UTC, ISO 8601, with seconds."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC).isoformat(timespec="seconds") == value
    except (TypeError, ValueError, OverflowError):
        return False


def _files_problem(text: Any) -> str | None:
    if not isinstance(text, str) or len(text) > MAX_JSON:
        return "has a list of files that is not text, or too long"
    try:
        files = parse_json(text, 4 * MAX_PUBLISHED_FILES, strict=True)
    except ValueError:
        files = None
    if not isinstance(files, dict) or len(files) > MAX_PUBLISHED_FILES:
        return f"does not list at most {MAX_PUBLISHED_FILES:,} files with their hashes"
    if not all(_is_relative_path(path) and is_content_hash(digest) for path, digest in files.items()):
        return "lists a file with a path outside the repo, or an invalid hash"
    return None


def _is_relative_path(path: str) -> bool:
    """Whether a path is relative, on one line, and inside its folder."""
    if not is_single_line(path, 1024) or "\\" in path or PureWindowsPath(path).drive:
        return False
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _fullmatch(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _fails(check: Callable[[str], None], value: str) -> bool:
    try:
        check(value)
    except VaultError:
        return True
    return False
