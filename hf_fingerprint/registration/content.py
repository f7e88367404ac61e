"""Identifies registered bases by their content hash, which is cached for files that don't change."""

from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_fingerprint.carriers import can_carry, row_rms
from hf_fingerprint.checkpoints import (
    NO_OPTIONS,
    Checkpoint,
    HubOptions,
    TensorInfo,
    content_hash,
    digest_tensors,
    open_checkpoint,
)
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.source import resolve_cached
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.vault import Base, Vault, current_bases


@dataclass(frozen=True)
class WeightScan:
    """The hashes and row sizes of a base's weights, from one pass over its files.

    Attributes:
        content_hash (`str`): see [`content_hash`].
        digests (`dict[str, str]`): hexadecimal SHA-256 of each tensor's bytes.
        row_rms (`dict[str, np.ndarray]`): root mean square of each row of every tensor that can carry the mark.
    """

    content_hash: str
    digests: dict[str, str] = field(repr=False)
    row_rms: dict[str, np.ndarray] = field(repr=False)


def scan_weights(checkpoint: Checkpoint) -> WeightScan:
    """The hashes of a checkpoint and the size of its weights, from one pass over its files."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def visit(info: TensorInfo, raw: np.ndarray) -> None:
        if can_carry(info):
            parts[info.name].append(row_rms(to_float32(raw, info.dtype).reshape(-1, info.columns)))

    digests = digest_tensors(checkpoint, visit=visit)
    rms = {name: np.concatenate(found) for name, found in parts.items()}
    return WeightScan(content_hash(checkpoint.tensors, digests), digests, rms)


def weights_hash(checkpoint: Checkpoint, vault: Vault, expected: str | None = None) -> str:
    """The content hash of an open checkpoint, from the vault's cache if the files didn't change, else from the bytes.

    Args:
        checkpoint ([`Checkpoint`]): the open checkpoint.
        vault ([`Vault`]): the vault.
        expected (`str`, *optional*): the expected hash. If the cache has another, the bytes are read again.
    """
    location, state = checkpoint.source.name, checkpoint.state()
    known = vault.cached_content_hash(location, state)
    if known is None or expected not in (None, known):
        known = content_hash(checkpoint.tensors, digest_tensors(checkpoint))
        vault.cache_content_hash(location, state, known)
    return known


def open_base(base: Base, vault: Vault, options: HubOptions = NO_OPTIONS) -> Checkpoint:
    """Opens the files of a registered base where it was registered from.

    Args:
        base ([`Base`]): the base.
        vault ([`Vault`]): its vault.
        options ([`HubOptions`], *optional*): for its token and cache. The record names the files.

    Raises:
        [`VaultError`]: if they are missing, or no longer the base.
    """
    location = f"{base.source}@{base.revision}" if base.revision else base.source
    try:
        original = open_checkpoint(location, weights_only=True, options=options.access)
    except FingerprintError as error:
        needed = f"Base {base.base_id} is needed to read a suspect"
        raise VaultError(f"{needed}: {error} Or give its location with --base.") from None
    if weights_hash(original, vault, base.content_hash) != base.content_hash:
        original.close()
        raise VaultError(
            f"{location} is no longer base {base.base_id}: the hash of its weights differs from the record. Restore "
            f"it, or give the location of the base itself with --base."
        )
    return original


def open_local_base(base: Base, vault: Vault, options: HubOptions = NO_OPTIONS) -> Checkpoint | None:
    """Opens the files of a registered base if they are on this machine and are still the base; downloads nothing.
    `options` names the Hub's cache."""
    with ExitStack() as stack, suppress(FingerprintError, OSError):
        where = resolve_cached(base.source, base.revision, options) if base.revision else base.source
        original = stack.enter_context(open_checkpoint(where))
        if weights_hash(original, vault, base.content_hash) == base.content_hash:
            stack.pop_all()
            return original
    return None


def lookup_base(vault: Vault, name: str | Path, options: HubOptions = NO_OPTIONS) -> Base:
    """Finds a registered base by its id, the source it was registered from, or a location of its weights.

    A record that was replaced by another one of the same weights is found by its id alone.

    Args:
        vault ([`Vault`]): the vault.
        name (`str` or `Path`): the id, or the model's name.
        options ([`HubOptions`], *optional*): which files of a named model, and how to reach them.

    Raises:
        [`VaultError`]: if the vault holds no such base.
    """
    bases = vault.bases()
    current = current_bases(bases)
    found = [base for base in bases if base.base_id == str(name)]
    if options == options.access:
        found += [base for base in current if str(name) in (base.source, f"{base.source}@{base.revision}")]
    if not found:
        with open_checkpoint(name, weights_only=True, options=options) as checkpoint:
            model_hash = weights_hash(checkpoint, vault)
        found = [base for base in current if base.content_hash == model_hash]
    if not found:
        raise no_such_base(name, vault)
    return found[0]


def no_such_base(name: str | Path, vault: Vault) -> VaultError:
    """The error for a location whose weights no registered base has."""
    unknown = f"{name} is not a base of {vault.folder}: the hash of its weights is not on record."
    return VaultError(f"{unknown} Give the base itself, or its id.")
