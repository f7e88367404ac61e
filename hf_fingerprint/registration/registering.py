"""Registers a base once: its hash, carriers, amplitudes, code and secret. Issuing a copy then takes one pass."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers import select_by_name, spend_budget
from hf_fingerprint.carriers.amplitude import largest_eps
from hf_fingerprint.checkpoints import Checkpoint, HubOptions, open_checkpoint
from hf_fingerprint.checkpoints.memory import ModelInput
from hf_fingerprint.codes import FairSigns, Tardos, certify, make_codebook
from hf_fingerprint.config import ALPHA, COALITION, EXPECTED_RECIPIENTS, FingerprintConfig
from hf_fingerprint.errors import CarrierError, CodeError, FingerprintWarning, VaultError
from hf_fingerprint.keys import derive, new_secret
from hf_fingerprint.models import BuiltModel
from hf_fingerprint.progress import Progress, shows_progress, silent
from hf_fingerprint.registration.amplitude_search import (
    MAX_SECONDS,
    MarkedModel,
    make_carriers,
    random_codewords,
    search_amplitudes,
)
from hf_fingerprint.registration.compact import compact_window
from hf_fingerprint.registration.content import WeightScan, cache_hash, cached_hash, scan_weights
from hf_fingerprint.registration.known_ancestors import AncestorInput, find_ancestor, record_ancestor
from hf_fingerprint.registration.known_copies import find_origin
from hf_fingerprint.registration.measuring import make_calibration, make_measurable
from hf_fingerprint.registration.output_budget import kept_budget, output_budgets
from hf_fingerprint.registration.prediction import check_dtypes, code_length, drift_noise, score_after_drift
from hf_fingerprint.registration.same_weights import Names, find_same_weights
from hf_fingerprint.vault import Base, CompactMark, TensorRecord, Vault, check_model_folder, current_bases


if TYPE_CHECKING:
    import torch


@shows_progress
def register(
    model: ModelInput | Checkpoint,
    vault: Vault,
    config: FingerprintConfig | None = None,
    progress: Progress | None = None,
    built: BuiltModel | None = None,
    remeasure: bool = False,
    as_base: bool = False,
    *,
    ancestor: AncestorInput = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
) -> Base:
    """Registers a base in a vault, or returns its record if it already is.

    Args:
        model (`str`, `Path`, `torch.nn.Module`, mapping of `str` to `torch.Tensor` or [`Checkpoint`]): a path, a Hub
            id, a module, which is measured by running a copy of it, a state dict, or an open checkpoint. It has a
            known base's record if it has that base's tensors, under any names.
        vault ([`Vault`]): the vault.
        config ([`FingerprintConfig`], *optional*): the settings; those given must agree with a known base's record.
        progress (callable, *optional*): a [`Progress`].
        built ([`BuiltModel`], *optional*): the model, ready to run, if neither timm nor transformers can build it.
        remeasure (`bool`, *optional*, defaults to `False`): whether to register a known base again, with this `config`
            and a new secret, for new copies. Earlier copies keep their record, and both can be traced.
        as_base (`bool`, *optional*, defaults to `False`): whether to register a model as a base even if it is a copy
            of a base on record, or carries the mark of one. Its record names that base (`copy_of`).
        ancestor (`str`, `Path`, `torch.nn.Module`, mapping or `False`, *optional*): the public model that it was
            fine-tuned from, which attackers may have; a trace uses it. Defaults to the `base_model` of the model card,
            which is fetched from the Hub if it can be; `False` for none. A known base without an ancestor gets it.
        device (`str` or `torch.device`, *optional*): where the model runs while it is measured, such as `"cuda"`.
            Defaults to the CPU, or to where `built` is. Only the CPU was tested.
        revision, token, cache_dir, subfolder, variant (*optional*): which files of the model, and how to reach them;
            see [`HubOptions`].

    Raises:
        [`BuildError`]: if the model can't be built to measure its output, and `config` has no fixed `amplitude`.
        [`CarrierError`]: if the model has too few weights, or can't be measured and `config` has no fixed `amplitude`.
        [`CodeError`]: if the base is registered with other settings.
        [`CheckpointError`]: if the given ancestor is not related to the model; see [`find_ancestor`].
        [`VaultError`]: if the model's folder holds a vault, the model is a copy (see [`find_origin`]), or the base has
            another ancestor on record.
    """
    options = HubOptions.for_model(model, revision, token, cache_dir, subfolder, variant)
    opening = nullcontext(model) if isinstance(model, Checkpoint) else open_checkpoint(model, options=options)
    with opening as checkpoint:
        return register_checkpoint(checkpoint, vault, config, progress, built, remeasure, as_base, device, ancestor)[0]


def register_checkpoint(
    checkpoint: Checkpoint,
    vault: Vault,
    config: FingerprintConfig | None = None,
    progress: Progress | None = None,
    built: BuiltModel | None = None,
    remeasure: bool = False,
    as_base: bool = False,
    device: "str | torch.device | None" = None,
    ancestor: AncestorInput = None,
) -> tuple[Base, Names]:
    """[`register`] for an open checkpoint: the record, and the checkpoint's tensor names by those of the record."""
    progress = progress or silent
    check_model_folder(checkpoint.source, vault.folder)
    progress("hashing the weights", 0, None)
    scan, model_hash = None, cached_hash(checkpoint, vault)
    if model_hash is None:
        scan = scan_weights(checkpoint)
        model_hash = scan.content_hash
        cache_hash(checkpoint, vault, model_hash)
    names = {name: name for name in checkpoint.tensors}
    known = vault.base_with_hash(model_hash)
    if known is None:
        scan = scan or scan_weights(checkpoint)
        same = find_same_weights(current_bases(vault.bases()), checkpoint.tensors, scan.digests)
        if same is not None and not remeasure:
            known, names = same
    if known is None or remeasure:
        digests = None if scan is None else scan.digests
        copy_of = known.copy_of if known is not None else _copy_origin(checkpoint, vault, progress, as_base, digests)
        descended = known.ancestor if known is not None and ancestor is None else None
        if descended is None:
            descended = find_ancestor(checkpoint, vault, ancestor, progress, model_hash)
        found = analyze_base(checkpoint, config or FingerprintConfig(), progress, built, scan, device)
        found = replace(found, copy_of=copy_of, ancestor=descended)
        return vault.add_base(found) if known is None else _add_replacement(known, found, vault), names
    if config is not None:
        _check_config(known, config)
    return record_ancestor(known, checkpoint, vault, ancestor, progress, model_hash), names


def _copy_origin(
    checkpoint: Checkpoint, vault: Vault, progress: Progress, as_base: bool, digests: Mapping[str, str] | None
) -> str | None:
    """The id of the base that a model is a copy of, if any; a [`VaultError`] unless `as_base`."""
    progress("comparing with the bases on record", 0, None)
    origin = find_origin(checkpoint, vault, digests)
    if origin is not None and not as_base:
        raise VaultError(origin.refusal(checkpoint.source.name))
    return None if origin is None else origin.base.base_id


def _add_replacement(known: Base, found: Base, vault: Vault) -> Base:
    """Adds a record that replaces another for new copies."""
    stored = vault.add_base(replace(found, replaces=known.base_id))
    if stored.base_id == known.base_id:
        raise VaultError(f"The id of base {known.base_id}'s new record is already taken: run the command again.")
    return stored


def _check_config(base: Base, config: FingerprintConfig) -> None:
    recorded = {
        "max_kl": base.calibration.max_kl,
        "min_agreement": base.calibration.min_agreement,
        "coalition": base.coalition,
        "expected_recipients": base.expected_recipients,
        "alpha": base.alpha,
        "amplitude": max(carrier.eps for carrier in base.carriers),
        "carriers": "spread" if base.compact is None else "compact",
        "code": base.family,
        "output_kind": base.calibration.output,
    }
    for name, value in recorded.items():
        requested = getattr(config, name)
        if requested is not None and requested != value:
            raise CodeError(
                f"Base {base.base_id} is registered with {name} {value}, not {requested}: all copies of a record "
                f"share it. Leave it out, or make a new record with `hf-fingerprint vault add --remeasure`."
            )


@shows_progress
def analyze_base(
    checkpoint: Checkpoint,
    config: FingerprintConfig,
    progress: Progress | None = None,
    built: BuiltModel | None = None,
    scan: WeightScan | None = None,
    device: "str | torch.device | None" = None,
) -> Base:
    """Computes the record of a base, with a fresh model secret, without storing it.

    Args:
        checkpoint ([`Checkpoint`]): the open model.
        config ([`FingerprintConfig`]): the settings.
        progress (callable, *optional*): a [`Progress`].
        built ([`BuiltModel`], *optional*): the model, ready to run, if it can't be built from its folder.
        scan ([`WeightScan`], *optional*): result of [`scan_weights`], if the caller has it.
        device (`str` or `torch.device`, *optional*): see [`register`].
    """
    progress = progress or silent
    where = checkpoint.source.name
    coalition, planned = config.coalition or COALITION, config.expected_recipients or EXPECTED_RECIPIENTS
    alpha = config.alpha or ALPHA
    check_dtypes(checkpoint.tensors, where)
    if scan is None:
        progress("hashing the weights", 0, None)
        scan = scan_weights(checkpoint)
    measurable = make_measurable(checkpoint, config, built, progress, scan.digests, device)
    budgets = output_budgets(config, None if measurable is None else measurable.kind)
    by_model = {} if measurable is None else measurable.parameters
    selected = [n for n in checkpoint.tensors if n in by_model] or select_by_name(checkpoint.tensors)
    selected = list({checkpoint.tied.get(n, n): n for n in reversed(selected)}.values())[::-1]  # one of tied ones
    rms = {name: scan.row_rms[name] for name in selected}
    for name, values in rms.items():
        if not np.isfinite(values).all():
            raise CarrierError(f"{where}: tensor {name} holds NaN or infinite weights: mark a model that works.")
    counts = sizes = np.array([int(np.prod(checkpoint.tensors[name].shape)) for name in selected])
    sensitivity = np.zeros(len(selected))
    if measurable is not None:
        progress("measuring what the mark does to the output", 0, None)
        if config.amplitude is None:
            sensitivity = measurable.sensitivity(selected, where)

    def spend(kept: np.ndarray, max_kl: float = budgets[0].max_kl, cap: float | None = None) -> np.ndarray:
        """The `eps` of some of the carriers, if no others are marked."""
        if config.amplitude is not None:
            return np.full(len(kept), config.amplitude)
        return spend_budget(max_kl, sensitivity[kept], sizes[kept], cap)

    every = kept = np.arange(len(selected))
    eps = spend(every)
    secret = new_secret()
    family = config.code or (FairSigns.family if coalition <= 2 else Tardos.family)
    compact = None
    if config.carriers == "compact":
        kept = compact_window(checkpoint.tensors, selected, spend, where)
        selected, counts, eps = [selected[i] for i in kept], sizes[kept], spend(kept)
    length = code_length(int(counts.sum()), where)
    codebook = make_codebook(family, length, coalition, secret)
    measured, budget = None, budgets[0]
    if measurable is not None:
        parameters = {name: by_model[name] for name in selected}
        search, report = measurable.search_images, measurable.report_images
        codewords = random_codewords(codebook)
        marked = MarkedModel(checkpoint, measurable.model, measurable.kind, parameters, rms, secret, codewords)
        if config.amplitude is None:
            eps, measured = search_amplitudes(marked, search, report, partial(spend, kept), budgets, progress)
            budget = kept_budget(budgets, measured)
        else:
            with suppress(CarrierError):  # the output is not finite, so it isn't measured
                measured = marked.compare(eps, report, seconds=MAX_SECONDS)
    if config.carriers == "compact":
        allowed = budget.max_kl if measured is None else budget.whole_kl(measured)
        spread = make_codebook(family, code_length(int(sizes.sum()), where), coalition, secret)
        differ = sum(checkpoint.tensors[name].nbytes for name in selected)
        share = differ / sum(info.nbytes for info in checkpoint.tensors.values())
        whole = spend(every, allowed, largest_eps(budgets[0].max_kl))
        compact = CompactMark(share, score_after_drift(spread, sizes, whole))
    progress("computing the certified coalition", 0, None)
    certified = certify(codebook, planned, alpha, drift_noise(counts, eps, length))
    if not certified.size:
        message = (
            f"No copy of {where} can be named after a drift of 2 %: its mark is up to {eps.max():.0e} of each row's "
            f"root mean square. See that its config has the input size that it was trained at, give images of your "
            f"own (--calibration) or allow more (--max-kl); a small model may have too few weights."
        )
        warnings.warn(message, FingerprintWarning, stacklevel=2)
    return Base(
        base_id=scan.content_hash[:8] + derive(secret, "base").hex()[:4],
        source=checkpoint.source.name,
        revision=checkpoint.source.revision,
        content_hash=scan.content_hash,
        tensors={n: TensorRecord(i.dtype, i.shape, scan.digests[n]) for n, i in checkpoint.tensors.items()},
        carriers=make_carriers(selected, eps, rms),
        family=family,
        length=length,
        coalition=coalition,
        certified=certified.size,
        certified_by=certified.method,
        alpha=alpha,
        expected_recipients=planned,
        calibration=make_calibration(measured, measurable, budget, config.amplitude),
        secret=secret,
        compact=compact,
    )
