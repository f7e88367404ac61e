"""Which registered base, if any, a checkpoint is: by its content hash, computed in full once for files that stand
still."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hf_fingerprint.carriers import can_carry, row_rms
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.source import resolve_cached
from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.vault import Base, Vault, current_bases


@dataclass(frozen=True)
class WeightScan:
    """What registration needs of a base's bytes, from one pass over its files.

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
    """The content hash of an open checkpoint, from the vault's memory of files that didn't change, else from the
    bytes.

    Args:
        checkpoint ([`Checkpoint`]): the open checkpoint.
        vault ([`Vault`]): the vault.
        expected (`str`, *optional*): the hash that it should have: another is found from the bytes only.
    """
    place, state = checkpoint.source.name, checkpoint.state()
    known = vault.cached_content_hash(place, state)
    if known is None or expected not in (None, known):
        known = content_hash(checkpoint.tensors, digest_tensors(checkpoint))
        vault.cache_content_hash(place, state, known)
    return known


def open_base(base: Base, vault: Vault) -> Checkpoint:
    """Opens a registered base's files where it was registered from, and refuses them if they are no longer the
    base."""
    place = f"{base.source}@{base.revision}" if base.revision else base.source
    try:
        original = open_checkpoint(place, weights_only=True)
    except FingerprintError as error:
        raise VaultError(
            f"Base {base.base_id} is needed to read a suspect: {error} Or give its place with --base."
        ) from None
    if weights_hash(original, vault, base.content_hash) != base.content_hash:
        original.close()
        raise VaultError(
            f"{place} is no longer base {base.base_id}: its weights' hash differs from the record; restore it, or "
            f"give "
            "the place of the base itself with --base."
        )
    return original


def open_local_base(base: Base, vault: Vault) -> Checkpoint | None:
    """Opens a registered base's files if they are on this machine and are still the base; downloads nothing."""
    original = None
    try:
        original = open_checkpoint(resolve_cached(base.source, base.revision) if base.revision else base.source)
        if weights_hash(original, vault, base.content_hash) == base.content_hash:
            return original
    except (FingerprintError, OSError):
        pass
    if original is not None:
        original.close()
    return None


def lookup_base(vault: Vault, name: str | Path) -> Base:
    """The registered base of a name: its id, where it was registered from, or a place where its weights are. Where a
    record replaces another of the same weights, only the id leads to the other.

    Raises:
        [`VaultError`]: if the vault holds no such base.
    """
    bases = vault.bases()
    for base in bases:
        if str(name) == base.base_id:
            return base
    bases = current_bases(bases)
    for base in bases:
        if str(name) in (base.source, f"{base.source}@{base.revision}"):
            return base
    with open_checkpoint(name, weights_only=True) as checkpoint:
        model_hash = weights_hash(checkpoint, vault)
    for base in bases:
        if base.content_hash == model_hash:
            return base
    raise VaultError(f"{name} is not a base of {vault.folder}: its weights' hash is not on record.")
