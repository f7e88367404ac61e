"""Partial freezing: carriers that do not train are left out of the loss term, and marked when the copy is recorded.

The extracted signal is additive over weights, so R is taken over the trained carriers alone: `y` and the energies are
sums over their weights. R is still 1 without a mark and 0 with it, and each weight still gets the amplitude of the
closed form. The frozen carriers keep the base's weights in memory, and get `w += a * X^T b` in the saved model.
"""

import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_fingerprint.carriers import MarkDelta, TensorProjection, TensorUpdate
from hf_fingerprint.checkpoints import Checkpoint, TensorInfo, open_checkpoint, rewrite_tensors
from hf_fingerprint.checkpoints.dtypes import WRITABLE, to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.checkpoints.writer import Rewrite
from hf_fingerprint.errors import FingerprintError, FingerprintWarning
from hf_fingerprint.extraction.match import match_tensors
from hf_fingerprint.registration import open_base, predicted_score
from hf_fingerprint.training.model_carriers import LocatedCarriers
from hf_fingerprint.training.regularizer import parameter_locations
from hf_fingerprint.vault import Base, Carrier, Vault


MIN_SHARE = 0.5  # of the predicted score
MIN_HELD = 0.5  # of the mark, in a carrier that has it


def trained_parameters(model: torch.nn.Module, optimizer: Any = None) -> frozenset[str]:
    """The names of the parameters that train.

    Args:
        model (`torch.nn.Module`): the model, wrapped or not.
        optimizer (`torch.optim.Optimizer`, *optional*): parameters that it lacks don't train. Ignored if it holds
            other tensors than the model's parameters, as under DeepSpeed.
    """
    parameters = {name: getattr(*place) for name, place in parameter_locations(model).items()}
    updated = {id(parameter) for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]}
    if not updated <= {id(parameter) for parameter in parameters.values()}:
        updated = set()
    return frozenset(n for n, p in parameters.items() if p.requires_grad and (not updated or id(p) in updated))


def check_frozen(base: Base, trained: LocatedCarriers, frozen: LocatedCarriers, is_copy: bool) -> None:
    """Warns of carriers that do not train, with the share of the predicted score that the others hold.

    Args:
        base ([`Base`]): the base.
        trained, frozen ([`LocatedCarriers`]): its carriers in the model.
        is_copy (`bool`): whether the training begins with an issued copy, whose frozen carriers have their mark.

    Raises:
        [`FingerprintError`]: if no carrier trains, or, for a base, those with less than half of the predicted score.
    """
    if not frozen.carriers:
        return
    count, remedy = len(base.carriers), "train without a fingerprint"
    if not is_copy:
        remedy += ", then issue a copy of the trained model"
    if not trained.carriers:
        raise FingerprintError(f"None of the {count} carriers of base {base.base_id} trains: {remedy}.")
    share = predicted_score(base, carriers={c.name for c in trained.carriers}) / predicted_score(base)
    said = (
        f"{len(trained.carriers)} of the {count} carriers of base {base.base_id} ({trained.weights:,} of "
        f"{base.carrier_weights:,} weights) train, with {share:.0%} of the predicted score"
    )
    if share < MIN_SHARE and not is_copy:
        raise FingerprintError(f"Only {said}, and half is needed: unfreeze more layers, or {remedy}.")
    rest = "keep the mark that they have" if is_copy else "get their mark in closed form when the copy is recorded"
    warnings.warn(f"{said}: the others {rest}.", FingerprintWarning, stacklevel=2)


def mark_frozen_carriers(folder: Path, base: Base, vault: Vault, names: tuple[str, ...], copy_key: bytes) -> None:
    """Adds the mark in closed form to carriers of a saved model that do not have it yet.

    Each weight file is replaced atomically. After an interruption, the same call adds what is missing.

    Args:
        folder (`Path`): the saved model.
        base ([`Base`]): the base that it was trained from.
        vault ([`Vault`]): the vault. It may be locked.
        names (`tuple[str, ...]`): the carriers that did not train, by their names in the base.
        copy_key (`bytes`): the recipient's copy key.

    Raises:
        [`FingerprintError`]: if a carrier can't be changed in the saved model.
    """
    if not names:
        return
    codeword = base.codebook().codeword(copy_key)
    packed = np.packbits(codeword > 0)
    rewrites: dict[Path, list[tuple[TensorInfo, Rewrite]]] = defaultdict(list)
    with open_checkpoint(folder) as saved, open_base(base, vault) as original:
        if saved.source.pickled:
            raise FingerprintError(f"{folder} is pickled, and its frozen carriers need their mark: use safetensors.")
        matches = match_tensors(base, original, saved)
        for carrier in base.carriers:
            if carrier.name not in names:
                continue
            info = matches.get(carrier.name)
            if info is None or info.dtype not in WRITABLE:
                problem = "lacks" if info is None else f"holds, as {info.dtype},"
                raise FingerprintError(
                    f"{folder} {problem} the frozen carrier {carrier.name}, which can't be marked: save the trained "
                    f"model as F32, F16 or BF16."
                )
            if _share_held(base, carrier, original, saved, info, codeword) < MIN_HELD:
                delta = MarkDelta(base.secret, carrier.name, carrier.amplitude, packed)
                update = TensorUpdate(copy_key, carrier.name, info.dtype, info.columns, [delta])
                rewrites[saved.source.weights[info.file]].append((info, update))
    for path, updates in rewrites.items():
        rewrite_tensors(path, updates)


def _share_held(
    base: Base, carrier: Carrier, original: Checkpoint, saved: Checkpoint, info: TensorInfo, codeword: np.ndarray
) -> float:
    """The size of the mark in one carrier of a saved model: about 1 if it has the mark, and 0 if not.

    This is a matched filter, `<a X d, b> / |a|^2` for the difference d to the base. Weights that are 0 are left out:
    they get no mark.
    """
    base_info = original.tensors[carrier.name]
    projection = TensorProjection(base.secret, carrier.name, base.length)
    sums, energy = np.zeros(base.length), 0.0
    for rows in block_rows(base_info):
        theirs, ours = (
            to_float32(opened.read(i, rows.start * i.row_bytes, rows.stop * i.row_bytes), i.dtype)
            for opened, i in ((saved, info), (original, base_info))
        )
        amplitude = np.repeat(carrier.amplitude[rows], base_info.columns)
        kept = amplitude * (theirs != 0)
        projection.read(((theirs - ours) * kept).reshape(-1, base_info.columns), sums)
        energy += float(kept @ kept)
    return float(sums @ codeword) / energy if energy else 1.0
