"""A base becomes known, once: its hash, carriers, amplitudes, code and secret. Its copies then cost a pass over the
file."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_fingerprint.carriers import TensorMarker, can_carry, row_rms, select_by_name, select_from_model, spend_budget
from hf_fingerprint.carriers.amplitude import MAX_EPS
from hf_fingerprint.checkpoints import Checkpoint, content_hash, digest_tensors, open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.checkpoints.reader import block_rows
from hf_fingerprint.codes import FairSigns, Tardos, coalition_by_formula, coalition_by_simulation, make_codebook
from hf_fingerprint.codes.coalition import expected_score
from hf_fingerprint.errors import CarrierError, CodeError
from hf_fingerprint.keys import new_secret
from hf_fingerprint.registration.building import BuiltModel, build_model, names_in_file
from hf_fingerprint.registration.content import weights_hash
from hf_fingerprint.registration.inputs import synthetic_images, user_images
from hf_fingerprint.registration.sensitivity import compare_outputs, measure_sensitivity
from hf_fingerprint.vault import Base, Calibration, Carrier, TensorRecord, Vault


MAX_LENGTH = 65536
WEIGHTS_PER_POSITION = 40
MAX_KL, ALPHA = 1e-4, 1e-6
COALITION, RECIPIENTS_PLANNED = 20, 1000
UNCALIBRATED_EPS = 0.003
MEASUREMENTS = 8
DRIFT = 0.02
Report = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is decided when a base is registered; `None` stands for the default, and for a known base for its record.

    Attributes:
        max_kl (`float`, *optional*, defaults to 1e-4): the output budget: the largest mean KL divergence between base
            and copy, in nats.
        calibration (`Path`, *optional*): a folder of images to measure it on; synthetic ones by default.
        coalition (`int`, *optional*, defaults to 20): the number of colluders to design the code for; up to 2 gives
            fair signs, more a Tardos code.
        recipients_planned (`int`, *optional*, defaults to 1,000): the number of recipients that the certified
            coalition is worked out for.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on the probability that a trace accuses any innocent.
        eps (`float`, *optional*): a fixed amplitude, as a share of each row's root mean square, instead of the budget:
            for a base that is the initialisation of a training from scratch, whose output means nothing yet.
    """

    max_kl: float | None = None
    calibration: Path | None = None
    coalition: int | None = None
    recipients_planned: int | None = None
    alpha: float | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
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
    model = built or build_model(checkpoint.source)
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
    secret = new_secret()
    length = code_length(sum(_weights(checkpoint, n) for n in selected), checkpoint.source.name)
    family = FairSigns.family if coalition <= 2 else Tardos.family
    codebook = make_codebook(family, length, coalition, secret)

    eps = np.full(len(selected), settings.eps or UNCALIBRATED_EPS)
    kl = agreement = None
    if model is not None and images is not None and mapping and settings.eps is None:
        report("measuring what the mark does to the output")
        sensitivity = measure_sensitivity(model.module, images, [mapping[n] for n in selected])
        if not np.isfinite(sensitivity).all():
            raise CarrierError(
                f"{checkpoint.source.name} gives no numbers on the calibration inputs: mark a model that works."
            )
        eps = spend_budget(max_kl, sensitivity, np.array([_weights(checkpoint, n) for n in selected]))
        codeword = codebook.packed([new_secret()])[0]
        best, failures = None, 0
        for _ in range(MEASUREMENTS):  # the second order is an estimate; the budget is spent by what is measured
            carriers = _carriers(selected, eps, rms)
            marked = {mapping[c.name]: _marked(checkpoint, c, secret, codeword) for c in carriers}
            kl, agreement = compare_outputs(model.module, images, marked)
            if kl <= max_kl:
                best = eps, kl, agreement
                if failures or kl >= 0.8 * max_kl or (eps >= MAX_EPS).all():
                    break
                eps = np.minimum(MAX_EPS, eps * np.sqrt(0.9 * max_kl / max(kl, 0.05 * max_kl)))
            elif best is not None:
                break
            else:  # rounding to half precision costs too, and doesn't shrink with the mark: shrink faster each time
                eps = eps * np.sqrt(0.9 * max_kl / kl) * 0.9**failures
                failures += 1
        if best is None:
            raise CarrierError(
                f"{checkpoint.source.name}: no mark keeps a KL of {max_kl:.1e} on the calibration inputs, the weakest "
                f"tried has {kl:.1e}: choose a larger --max-kl."
            )
        eps, kl, agreement = best
    carriers = _carriers(selected, eps, rms)

    report("working out the certified coalition")
    noise = drift_noise(carriers, {n: _weights(checkpoint, n) for n in selected}, length)
    certified = coalition_by_simulation(codebook, planned, alpha, noise)
    whole = content_hash(checkpoint.tensors, digests)
    return Base(
        base_id=whole[:12],
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
    )


def code_length(weights: int, where: str) -> int:
    """V for a number of carrier weights: the largest power of two up to 65,536 with at least 40 weights a position.

    Raises:
        [`CarrierError`]: if there are too few weights for 64 positions.
    """
    if weights < 64 * WEIGHTS_PER_POSITION:
        raise CarrierError(
            f"{where} has {weights} convolution and linear weights besides stem and classifier, and a mark needs "
            f"{64 * WEIGHTS_PER_POSITION}: the model is too small."
        )
    return min(MAX_LENGTH, 1 << (weights // WEIGHTS_PER_POSITION).bit_length() - 1)


def drift_noise(carriers: tuple[Carrier, ...], weights: dict[str, int], length: int, drift: float = DRIFT) -> float:
    """The reading's noise at one position after the suspect's weights drifted, in units of the mark's amplitude.

    Args:
        carriers (`tuple[Carrier, ...]`): the carriers.
        weights (`dict[str, int]`): how many weights each has.
        length (`int`): V.
        drift (`float`, *optional*, defaults to 0.02): standard deviation of the drift, relative to the rows' root mean
            square: about a fine-tuning with AdamW at 1e-4.
    """
    energy = sum(weights[carrier.name] * carrier.eps**2 for carrier in carriers) / length
    return drift / np.sqrt(energy) if energy else float("inf")


def predicted_score(base: Base, drift: float = DRIFT) -> float:
    """The score that one leaked copy is expected to have after a drift, by formula."""
    weights = {carrier.name: int(np.prod(base.tensors[carrier.name].shape)) for carrier in base.carriers}
    return expected_score(base.codebook(), 1, drift_noise(base.carriers, weights, base.length, drift))


def averaging_coalition(base: Base, drift: float = DRIFT) -> int:
    """The number of colluders by averaging that the base's code withstands after a drift, by formula."""
    weights = {carrier.name: int(np.prod(base.tensors[carrier.name].shape)) for carrier in base.carriers}
    noise = drift_noise(base.carriers, weights, base.length, drift)
    return coalition_by_formula(base.codebook(), base.recipients_planned, base.alpha, noise).size


def _weights(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    return info.rows * info.columns


def _carriers(names: list[str], eps: np.ndarray, rms: dict[str, np.ndarray]) -> tuple[Carrier, ...]:
    return tuple(Carrier(name, float(e), np.float32(e) * rms[name]) for name, e in zip(names, eps, strict=True))


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


def _marked(checkpoint: Checkpoint, carrier: Carrier, secret: bytes, codeword: np.ndarray) -> np.ndarray:
    info = checkpoint.tensors[carrier.name]
    marker = TensorMarker(secret, secret, info.name, info.dtype, info.columns, carrier.amplitude, codeword)
    raw = checkpoint.read(info, out=np.empty(info.nbytes, np.uint8))
    for rows in block_rows(info):
        marker(raw[rows.start * info.row_bytes : rows.stop * info.row_bytes])
    return to_float32(raw, info.dtype).reshape(-1, info.columns)
