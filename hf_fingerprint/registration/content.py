"""Identifies registered bases by their content hash, which is cached for files that don't change."""

from collections import defaultdict
from collections.abc import Sequence
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
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.checkpoints.naming import IN_MEMORY
from hf_fingerprint.checkpoints.source import resolve_cached
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.registration.hash_cache import cache_hash, cached_hash
from hf_fingerprint.registration.same_weights import Names, find_same_weights
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
    known = cached_hash(checkpoint, vault)
    if known is None or expected not in (None, known):
        known = content_hash(checkpoint.tensors, digest_tensors(checkpoint))
        cache_hash(checkpoint, vault, known)
    return known


def has_hash(opened: Checkpoint, vault: Vault, expected: str) -> bool:
    """Whether an open checkpoint has the expected content hash; see [`weights_hash`]. If not, it is closed."""
    with ExitStack() as stack:
        stack.push(opened)
        if weights_hash(opened, vault, expected) != expected:
            return False
        stack.pop_all()
    return True


def open_base(base: Base, vault: Vault, options: HubOptions = NO_OPTIONS) -> Checkpoint:
    """Opens the files of a registered base where it was registered from.

    Args:
        base ([`Base`]): the base.
        vault ([`Vault`]): its vault.
        options ([`HubOptions`], *optional*): for its token and cache. The record names the files.

    Raises:
        [`VaultError`]: if they are missing, or no longer the base.
    """
    if IN_MEMORY.fullmatch(base.source):
        raise VaultError(
            f"Base {base.base_id} was registered from memory ({base.source}), and its weights are needed: give the "
            f"module, its state dict or a file of its weights as base (--base)."
        )
    location = f"{base.source}@{base.revision}" if base.revision else base.source
    try:
        original = open_checkpoint(location, weights_only=True, options=options.access)
    except FingerprintError as error:
        needed = f"Base {base.base_id} is needed to read a suspect"
        raise VaultError(f"{needed}: {error} Or give its location with --base.") from None
    if not has_hash(original, vault, base.content_hash):
        raise VaultError(
            f"{location} is no longer base {base.base_id}: the hash of its weights differs from the record. Restore "
            f"it, or give the location of the base itself with --base."
        )
    return original


def open_local_base(base: Base, vault: Vault, options: HubOptions = NO_OPTIONS) -> Checkpoint | None:
    """Opens the files of a registered base if they are on this machine and are still the base; downloads nothing.
    `options` names the Hub's cache."""
    if IN_MEMORY.fullmatch(base.source):
        return None
    with suppress(FingerprintError, OSError):
        where = resolve_cached(base.source, base.revision, options) if base.revision else base.source
        original = open_checkpoint(where)
        return original if has_hash(original, vault, base.content_hash) else None
    return None


def lookup_base(vault: Vault, name: ModelInput, options: HubOptions = NO_OPTIONS) -> Base:
    """Finds a registered base by its id, the source it was registered from, or its weights.

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
    if isinstance(name, str | Path):
        found = [base for base in bases if base.base_id == str(name)]
        if options == options.access:
            files = [base for base in current if not IN_MEMORY.fullmatch(base.source)]
            found += [base for base in files if str(name) in (base.source, f"{base.source}@{base.revision}")]
        if found:
            return found[0]
    with open_checkpoint(name, weights_only=True, options=options) as checkpoint:
        return identify_base(checkpoint, current, vault)[0]


def identify_base(checkpoint: Checkpoint, bases: Sequence[Base], vault: Vault) -> tuple[Base, Names]:
    """The base whose weights an open checkpoint has, and the checkpoint's tensor names by the base's.

    Raises:
        [`VaultError`]: if it is none of these bases.
    """
    model_hash = cached_hash(checkpoint, vault)
    digests = None if model_hash else digest_tensors(checkpoint)
    if digests is not None:
        model_hash = content_hash(checkpoint.tensors, digests)
        cache_hash(checkpoint, vault, model_hash)
    for base in bases:
        if base.content_hash == model_hash:
            return base, {name: name for name in base.tensors}
    digests = digest_tensors(checkpoint) if digests is None else digests
    found = find_same_weights(bases, checkpoint.tensors, digests)
    if found is None:
        unknown = (
            f"{checkpoint.source.name} is not a base of {vault.folder}: the hash of its weights is not on record."
        )
        raise VaultError(f"{unknown} Give the base itself, or its id.")
    return found


def match_base(checkpoint: Checkpoint, base: Base, vault: Vault) -> Names:
    """The tensor names of an open checkpoint, which has the weights of this base, by the base's.

    Raises:
        [`VaultError`]: if it has other weights.
    """
    try:
        return identify_base(checkpoint, [base], vault)[1]
    except VaultError:
        other = f"{checkpoint.source.name} does not have the weights of base {base.base_id} ({base.source})"
        raise VaultError(f"{other}: give the model that was loaded from it, unchanged, or leave out base.") from None
