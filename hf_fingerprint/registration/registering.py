"""A base becomes known, once: its hash, carriers, amplitudes, code and secret. Its copies then cost a pass over the
file."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_fingerprint.carriers import can_carry, row_rms, select_by_name, select_from_model, spend_budget
from hf_fingerprint.checkpoints import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.codes import FAMILIES, FairSigns, Tardos, coalition_by_simulation, make_codebook
from hf_fingerprint.errors import BuildError, CarrierError, CodeError
from hf_fingerprint.keys import derive, new_secret
from hf_fingerprint.models import BuiltModel, build_model, names_in_file, synthetic_images, user_images
from hf_fingerprint.registration.compact import compact_window
from hf_fingerprint.registration.content import weights_hash
from hf_fingerprint.registration.prediction import code_length, drift_noise, score_after_drift
from hf_fingerprint.registration.sensitivity import measure_sensitivity
from hf_fingerprint.registration.strength import carriers_of, measured_strength
from hf_fingerprint.vault import Base, Calibration, Compact, TensorRecord, Vault


MAX_KL, ALPHA = 1e-4, 1e-6
COALITION, RECIPIENTS_PLANNED = 20, 1000
UNCALIBRATED_EPS = 0.003
LAYOUTS = ("spread", "compact")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is decided when a base is registered; `None` stands for the default, and for a known base for its record.

    Attributes:
        max_kl (`float`, *optional*, defaults to 1e-4): the output budget: the largest mean KL divergence between base
            and copy, in nats.
        calibration (`Path`, *optional*): a folder of images to measure it on; synthetic ones by default.
        coalition (`int`, *optional*, defaults to 20): the number of colluders to design the code for; up to 2 gives
            fair signs, more a Tardos code, unless `code` says otherwise.
        recipients_planned (`int`, *optional*, defaults to 1,000): the number of recipients that the certified
            coalition is worked out for.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on the probability that a trace accuses any innocent.
        eps (`float`, *optional*): a fixed amplitude, as a share of each row's root mean square, instead of the budget:
            for a base that is the initialisation of a training from scratch, whose output means nothing yet.
        carriers (`str`, *optional*, defaults to `"spread"`): `"spread"` marks all tensors that can carry, `"compact"`
            a few that lie together, so that copies share nearly all of their bytes, at a cost in robustness.
        code (`str`, *optional*): the code's family, one of `FAMILIES`: `"tardos"`, `"nuida"` or `"fair_signs"`.
    """

    max_kl: float | None = None
    calibration: Path | None = None
    coalition: int | None = None
    recipients_planned: int | None = None
    alpha: float | None = None
    eps: float | None = None
    carriers: str | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        if self.carriers not in (None, *LAYOUTS):
            raise CodeError(f"Carriers are laid out {' or '.join(LAYOUTS)}, not {self.carriers}: choose --carriers.")
        if self.code not in (None, *FAMILIES):
            raise CodeError(f"There is no code called {self.code}: choose --code {', '.join(FAMILIES)}.")
        if self.max_kl is not None and not 0 < self.max_kl <= 1:
            raise CodeError(f"A budget of {self.max_kl} nats can't be spent: choose --max-kl above 0 and at most 1.")
        if self.alpha is not None and not 0 < self.alpha < 0.5:
            raise CodeError(f"An alpha of {self.alpha} bounds nothing: choose one above 0 and under 0.5.")
        if self.eps is not None and not 0 < self.eps <= 1:
            raise CodeError(f"An amplitude of {self.eps} can't be trained: choose --eps above 0 and at most 1.")
        if any(count is not None and count < 1 for count in (self.coalition, self.recipients_planned)):
            raise CodeError("The coalition and the planned number of recipients must be 1 or more.")


def register(
    model: str | Path | Checkpoint,
    vault: Vault,
    settings: Settings | None = None,
    report: Report | None = None,
    built: BuiltModel | None = None,
) -> Base:
    """Registers a base in a vault, or returns its record if it already is.

    Args:
        model (`str`, `Path` or [`Checkpoint`]): a path, a Hub id, or an open checkpoint.
        vault ([`Vault`]): the vault.
        settings ([`Settings`], *optional*): for a new base; for a known one they must agree with its record.
        report (callable, *optional*): told each step, for progress.
        built ([`BuiltModel`], *optional*): the model, ready to run, where neither timm nor transformers can build it.

    Raises:
        [`CarrierError`]: if the model has too few weights to mark.
        [`CodeError`]: if the base is registered with other settings.
    """
    with nullcontext(model) if isinstance(model, Checkpoint) else open_checkpoint(model) as checkpoint:
        (report or _silent)("hashing the weights")
        known = vault.base_with_hash(weights_hash(checkpoint, vault))
        if known is None:
            digests = digest_tensors(checkpoint)
            return vault.add_base(examine(checkpoint, digests, settings or Settings(), report, built))
    if settings is not None:
        _check_same(known, settings)
    return known


def _check_same(base: Base, settings: Settings) -> None:
    recorded = {
        "max_kl": base.calibration.max_kl,
        "coalition": base.coalition,
        "recipients_planned": base.recipients_planned,
        "alpha": base.alpha,
        "eps": max(carrier.eps for carrier in base.carriers),
        "carriers": "spread" if base.compact is None else "compact",
        "code": base.family,
    }
    for name, value in recorded.items():
        asked = getattr(settings, name)
        if asked is not None and asked != value:
            raise CodeError(
                f"Base {base.base_id} is registered with {name} {value}, not {asked}: all copies of a base share it; "
                "leave it out, or use another vault."
            )


def _silent(step: str) -> None:
    pass


def examine(
    checkpoint: Checkpoint,
    digests: dict[str, str],
    settings: Settings,
    report: Report | None = None,
    built: BuiltModel | None = None,
) -> Base:
    """Works out everything about a base, with a fresh model secret, without recording it.

    Args:
        checkpoint ([`Checkpoint`]): the open model.
        digests (`dict[str, str]`): of its tensors, from [`digest_tensors`].
        settings ([`Settings`]): what is decided by the caller.
        report (callable, *optional*): told each step.
        built ([`BuiltModel`], *optional*): the model, ready to run, if it can't be built from its folder.
    """
    report = report or _silent
    max_kl, alpha = settings.max_kl or MAX_KL, settings.alpha or ALPHA
    coalition, planned = settings.coalition or COALITION, settings.recipients_planned or RECIPIENTS_PLANNED
    report("building the model")
    model = built
    if model is None:
        with suppress(BuildError):
            model = build_model(checkpoint)
    images, inputs = None, "none"
    mapping: dict[str, str] = {}
    if model is not None:
        user = settings.calibration
        images = user_images(user, model) if user else synthetic_images(model)
        inputs = "images" if user else "synthetic"
        names = names_in_file(model.module, checkpoint)
        chosen = [n for n in select_from_model(model.module, images[:1]) if n in names]
        mapping = {names[n]: n for n in chosen if can_carry(checkpoint.tensors[names[n]])}
    elif settings.calibration:
        raise CarrierError(
            f"{checkpoint.source.name} can't be built, so images can't calibrate it: give its folder, with "
            f"config.json."
        )
    selected = [n for n in checkpoint.tensors if n in mapping] or select_by_name(checkpoint.tensors)
    report("reading the carriers")
    rms = {name: _rms(checkpoint, name) for name in selected}
    counts = sizes = np.array([_weights(checkpoint, name) for name in selected])
    sensitivity = None
    if model is not None and images is not None and mapping and settings.eps is None:
        report("measuring what the mark does to the output")
        sensitivity = measure_sensitivity(model.module, images, [mapping[n] for n in selected])
        if not np.isfinite(sensitivity).all():
            raise CarrierError(
                f"{checkpoint.source.name} gives no numbers on the calibration inputs: mark a model that works."
            )

    def spend(kept: np.ndarray) -> np.ndarray:
        """`eps` of some of the carriers, if no other is marked."""
        if sensitivity is None:
            return np.full(len(kept), settings.eps or UNCALIBRATED_EPS)
        return spend_budget(max_kl, sensitivity[kept], sizes[kept])

    eps = spend(np.arange(len(selected)))
    secret = new_secret()
    family = settings.code or (FairSigns.family if coalition <= 2 else Tardos.family)
    compact = None
    if settings.carriers == "compact":
        kept = compact_window(
            checkpoint.tensors,
            selected,
            spend,
            checkpoint.source.name,
        )
        length = code_length(int(counts.sum()), checkpoint.source.name)
        spread = make_codebook(family, length, coalition, secret)
        differ = sum(checkpoint.tensors[selected[i]].nbytes for i in kept)
        share = differ / sum(info.nbytes for info in checkpoint.tensors.values())
        compact = Compact(share, score_after_drift(spread, counts, eps))
        selected, counts, eps = [selected[i] for i in kept], sizes[kept], spend(kept)
    length = code_length(int(counts.sum()), checkpoint.source.name)
    codebook = make_codebook(family, length, coalition, secret)
    kl = agreement = None
    if model is not None and images is not None and sensitivity is not None:
        parameters = {name: mapping[name] for name in selected}
        eps, kl, agreement = measured_strength(
            checkpoint, model, images, parameters, eps, rms, max_kl, secret, codebook
        )
    carriers = carriers_of(selected, eps, rms)

    report("working out the certified coalition")
    noise = drift_noise(counts, eps, length)
    certified = coalition_by_simulation(codebook, planned, alpha, noise)
    whole = content_hash(checkpoint.tensors, digests)
    return Base(
        base_id=whole[:8] + derive(secret, "base").hex()[:4],
        source=checkpoint.source.name,
        revision=checkpoint.source.revision,
        content_hash=whole,
        tensors={n: TensorRecord(i.dtype, i.shape, digests[n]) for n, i in checkpoint.tensors.items()},
        carriers=carriers,
        family=family,
        length=length,
        coalition=coalition,
        certified=certified.size,
        certified_by=certified.method,
        alpha=alpha,
        recipients_planned=planned,
        calibration=Calibration(
            inputs if kl is not None else "none",
            len(images) if images is not None and kl is not None else 0,
            max_kl,
            kl,
            agreement,
        ),
        secret=secret,
        compact=compact,
    )


def _weights(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    return info.rows * info.columns


def _rms(checkpoint: Checkpoint, name: str) -> np.ndarray:
    info = checkpoint.tensors[name]
    parts = []
    for _, raw in checkpoint.blocks(info):
        values = to_float32(raw, info.dtype).reshape(-1, info.columns)
        parts.append(row_rms(values))
    rms = np.concatenate(parts)
    if not np.isfinite(rms).all():
        raise CarrierError(
            f"{checkpoint.source.name}: tensor {name} holds NaN or infinite weights: mark a model that works."
        )
    return rms
