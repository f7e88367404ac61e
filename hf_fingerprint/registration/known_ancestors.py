"""Finds, checks and opens the ancestor of a base: the public model that it was fine-tuned from, which attackers have.

The record holds its place and content hash. A model is an ancestor if at least half of the base's convolution and
linear weights have a namesake of the same shape in it, and the cosine over a sample of their rows is at least 0.2, as
for a descendant (models trained apart are at 0), but not all of them are equal.
"""

import warnings
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from hf_fingerprint.carriers import select_by_name
from hf_fingerprint.checkpoints import NO_OPTIONS, Checkpoint, HubOptions, open_checkpoint
from hf_fingerprint.checkpoints.dtypes import SIZES
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.checkpoints.model_card import named_base_model
from hf_fingerprint.checkpoints.namesakes import Namesakes
from hf_fingerprint.checkpoints.naming import IN_MEMORY
from hf_fingerprint.checkpoints.renamed import RenamedCheckpoint
from hf_fingerprint.checkpoints.row_samples import load_sampled_rows
from hf_fingerprint.checkpoints.source import Source, resolve, resolve_cached
from hf_fingerprint.errors import CheckpointError, FingerprintError, FingerprintWarning, VaultError
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration.content import has_hash, weights_hash
from hf_fingerprint.vault import Ancestor, Base, Vault


AncestorInput: TypeAlias = ModelInput | Literal[False] | None  # False: there is none; None: the one in the card
MIN_COUNTERPARTS = 0.5  # share of the weights that can carry a mark
MIN_COSINE = 0.2
SAMPLE_ROWS = 8
# of a download that the caller did not name: for other precision, and a larger head
MAX_SIZE_RATIO, MAX_EXTRA_BYTES = 4, 1 << 28


def find_ancestor(
    model: Checkpoint, vault: Vault, given: AncestorInput, progress: Progress, content_hash: str
) -> Ancestor | None:
    """The ancestor to record for a model: the given one, or the `base_model` of its model card if it can be had.

    Args:
        model ([`Checkpoint`]): the open model.
        vault ([`Vault`]): the vault, which caches content hashes.
        given ([`ModelInput`], `False` or `None`): the ancestor; `False` if there is none, `None` for that of the card.
            What the card names is fetched from the Hub; if it can't be, or is no ancestor, a [`FingerprintWarning`]
            says so.
        progress (callable): a [`Progress`].
        content_hash (`str`): the model's content hash.

    Raises:
        [`FingerprintError`]: if the given ancestor can't be opened, or is none.
    """
    if given is False:
        return None
    if given is not None:
        return _examine(model, vault, given, progress, content_hash)
    source, named = model.source, "its base_model"
    if source.in_memory or not source.owns_folder:
        return None
    try:
        found = named_base_model(source.folder)
        if found is None:
            return None
        named = found
        size = sum(info.nbytes for info in model.tensors.values())
        return _examine(model, vault, _fetch(found, None, size, source.access), progress, content_hash)
    except (FingerprintError, OSError) as error:
        message = (
            f"No ancestor is recorded for {source.name}, since {named}, which its model card names, can't be used: "
            f"{error} Give it later with `hf-fingerprint vault add --ancestor`, or say --ancestor none."
        )
        warnings.warn(message, FingerprintWarning, stacklevel=2)
        return None


def record_ancestor(
    known: Base, model: Checkpoint, vault: Vault, given: AncestorInput, progress: Progress, content_hash: str
) -> Base:
    """The record of a known base with the given ancestor; see [`find_ancestor`]. No copy depends on it.

    `None` changes nothing, and `False` removes what is recorded. An ancestor that has moved gets its new place.

    Raises:
        [`FingerprintError`]: if the given ancestor can't be opened, is none, or has other weights than the recorded
            one.
    """
    if given is None:
        return known
    found, recorded = find_ancestor(model, vault, given, progress, content_hash), known.ancestor
    if found == recorded:
        return known
    if found is not None and recorded is not None and found.content_hash != recorded.content_hash:
        raise VaultError(
            f"Base {known.base_id} has the ancestor {recorded.place} on record, and {found.place} has other weights: "
            f"leave out --ancestor, or remove the record first (`hf-fingerprint vault add MODEL --ancestor none`)."
        )
    return vault.set_ancestor(known, found)


def open_ancestor(
    base: Base, vault: Vault, options: HubOptions = NO_OPTIONS, given: ModelInput | None = None
) -> Checkpoint:
    """Opens the recorded ancestor of a base, with the tensors that the base has too, under the base's names.

    Args:
        base ([`Base`]): the base.
        vault ([`Vault`]): its vault.
        options ([`HubOptions`], *optional*): for its token and cache. The record names the files.
        given ([`ModelInput`], *optional*): the ancestor's files, if they have moved.

    Raises:
        [`VaultError`]: if none is recorded, its files are missing, or they are no longer the recorded ones.
    """
    record = base.ancestor
    if record is None:
        raise VaultError(
            f"Base {base.base_id} has no ancestor on record: record it with `hf-fingerprint vault add MODEL "
            f"--ancestor`, before you trace."
        )
    name = f"The ancestor of base {base.base_id}"
    if given is None and IN_MEMORY.fullmatch(record.source):
        raise VaultError(f"{name} was recorded from memory ({record.source}): give its files with --ancestor.")
    try:
        if given is None:
            opened = _open_recorded(base, record, options)
        else:
            opened = open_checkpoint(given, weights_only=True, options=options.access)
    except (FingerprintError, OSError) as error:
        raise VaultError(f"{name} can't be opened: {error} Or give its location with --ancestor.") from None
    if not has_hash(opened, vault, record.content_hash):
        raise VaultError(
            f"{name} is {record.place} on record, and the weights of {opened.source.name} have another hash: restore "
            f"it, or give the location of the recorded model with --ancestor."
        )
    wanted = {name: info.shape for name, info in base.tensors.items()}
    found = Namesakes(opened.tensors).find_shaped(wanted)
    return RenamedCheckpoint(opened, {ours: info.name for ours, info in found.items()})


def _open_recorded(base: Base, record: Ancestor, options: HubOptions) -> Checkpoint:
    """The ancestor at its recorded place; from the cache if it is there, since a commit does not change."""
    if Path(record.source).is_absolute():
        return open_checkpoint(record.source)
    if record.revision is not None:
        with suppress(FingerprintError, OSError):
            return open_checkpoint(resolve_cached(record.source, record.revision, options))
    size = sum(SIZES.get(info.dtype, 1) * prod(info.shape) for info in base.tensors.values())
    return open_checkpoint(_fetch(record.source, record.revision, size, options))


def _fetch(repo: str, revision: str | None, base_bytes: int, options: HubOptions) -> Source:
    """The files of a repo that a card or a colleague's record names, if they are not much larger than the base's."""
    limit = MAX_SIZE_RATIO * base_bytes + MAX_EXTRA_BYTES
    name = f"hf-hub:{repo}" if revision is None else f"hf-hub:{repo}@{revision}"
    return resolve(name, weights_only=True, options=options.access, max_bytes=limit)


def _examine(
    model: Checkpoint, vault: Vault, given: ModelInput | Source, progress: Progress, content_hash: str
) -> Ancestor:
    """The record of a model's ancestor, which is opened and checked."""
    progress("reading the ancestor", 0, None)
    with open_checkpoint(given, weights_only=True, options=model.source.access) as opened:
        _check_related(model, opened)
        source, found = opened.source, weights_hash(opened, vault)
        if found == content_hash:
            raise _same_weights_error(model, opened)
        return Ancestor(source.name, source.revision, found)


def _check_related(model: Checkpoint, ancestor: Checkpoint) -> None:
    """Raises a [`CheckpointError`] unless a model may have been fine-tuned from another."""
    where, other = model.source.name, ancestor.source.name
    marked = {name: model.tensors[name].shape for name in select_by_name(model.tensors)}
    found = Namesakes(ancestor.tensors).find_shaped(marked)
    if not found or len(found) < MIN_COUNTERPARTS * len(marked):
        raise CheckpointError(
            f"{other} can't be the ancestor of {where}: {len(found)} of {len(marked)} weights have a namesake of the "
            f"same shape in it; give the model that it was fine-tuned from, in the same layout."
        )
    products = np.zeros(3)
    is_equal = True
    for name, info in found.items():
        sampled = (load_sampled_rows(*each, SAMPLE_ROWS) for each in ((model, model.tensors[name]), (ancestor, info)))
        ours, theirs = (each.astype(np.float64) for each in sampled)
        is_equal &= np.array_equal(ours, theirs)
        products += ours @ theirs, ours @ ours, theirs @ theirs
    if is_equal:
        raise _same_weights_error(model, ancestor)
    scale = float(np.sqrt(products[1] * products[2]))
    cosine = float(products[0]) / scale if scale > 0 else 0.0
    if not cosine >= MIN_COSINE:
        raise CheckpointError(
            f"{other} can't be the ancestor of {where}: their weights are not similar (cosine {cosine:.3f}); give the "
            f"model that it was fine-tuned from."
        )


def _same_weights_error(model: Checkpoint, ancestor: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"{ancestor.source.name} can't be the ancestor of {model.source.name}: both have the same weights; give the "
        f"model before it was fine-tuned."
    )
