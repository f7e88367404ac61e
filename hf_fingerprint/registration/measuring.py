"""Prepares the measurement of a base's output: the built model, the kind of its output, its carriers, and inputs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.carriers import can_carry, select_from_model
from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.config import DEFAULT_CALIBRATION_IMAGES, FingerprintConfig
from hf_fingerprint.errors import BuildError, CarrierError
from hf_fingerprint.models import BuiltModel, LazyImages, build_model, map_parameter_names
from hf_fingerprint.models.inputs import lazy_synthetic_images, split_user_images
from hf_fingerprint.progress import Progress
from hf_fingerprint.registration.output_budget import OutputBudget
from hf_fingerprint.registration.output_comparison import OutputComparison
from hf_fingerprint.registration.outputs import find_output_kind
from hf_fingerprint.registration.sensitivity import measure_sensitivity
from hf_fingerprint.vault import Calibration


if TYPE_CHECKING:
    import torch

SUGGESTED_AMPLITUDE = 0.003
SEARCH_IMAGES = 32  # images that the amplitudes are searched on
_SEARCH_SEED, _REPORT_SEED = 0, 1


@dataclass(frozen=True)
class MeasurableModel:
    """A model whose output can be measured.

    Attributes:
        model ([`BuiltModel`]): the model, ready to run.
        kind (`str`): the kind of its output, one of `KINDS`.
        parameters (`dict[str, str]`): the parameter names of all possible carriers, by their names in the file.
        search_images, report_images ([`LazyImages`]): images to search the amplitudes on, and others to measure on.
        inputs (`str`): `"images"` or `"synthetic"`.
    """

    model: BuiltModel
    kind: str
    parameters: dict[str, str]
    search_images: LazyImages
    report_images: LazyImages
    inputs: str

    def sensitivity(self, selected: list[str], where: str) -> np.ndarray:
        """The sensitivities of these carriers, see [`measure_sensitivity`]; a [`CarrierError`] if they aren't
        finite."""
        names = [self.parameters[name] for name in selected]
        found = measure_sensitivity(self.model.module, self.search_images, names, self.kind)
        if not np.isfinite(found).all():
            raise measurement_error(CarrierError(f"{where} gives no numbers on the calibration inputs."))
        return found


def make_measurable(
    checkpoint: Checkpoint,
    config: FingerprintConfig,
    built: BuiltModel | None,
    progress: Progress,
    digests: dict[str, str],
    device: "str | torch.device | None" = None,
) -> MeasurableModel | None:
    """Builds a base for measurement; `None` if it can't be measured and `config` has a fixed amplitude.

    Raises:
        [`BuildError`]: if the model can't be built or run, and `config` has no fixed amplitude.
        [`CarrierError`]: likewise if its output is of no known kind; or if it can't be calibrated on the given images.
        [`CodeError`]: if `config.output_kind` differs from the model's configuration.
    """
    progress("building the model", 0, None)
    try:
        return _make_measurable(checkpoint, config, built, digests, device)
    except (BuildError, CarrierError) as error:
        if config.calibration:
            reason = str(error).rstrip(".")
            message = f"{checkpoint.source.name} can't be run, so images can't calibrate it ({reason})."
            raise CarrierError(message) from error
        if config.amplitude is None:
            raise measurement_error(error) from error
        return None


def measurement_error(error: BuildError | CarrierError) -> BuildError | CarrierError:
    """The error for a base whose output can't be measured, with the way out."""
    joint = ", or" if isinstance(error, BuildError) else ":"
    return type(error)(
        f"{str(error).rstrip('.')}{joint} mark it at a fixed amplitude with --amplitude {SUGGESTED_AMPLITUDE} "
        f"(FingerprintConfig(amplitude={SUGGESTED_AMPLITUDE})), without measuring the effect on the output."
    )


def make_calibration(
    measured: OutputComparison | None, measurable: MeasurableModel | None, budget: OutputBudget, eps: float | None
) -> Calibration:
    """The record of the measurement."""
    if measured is None or measurable is None:
        return Calibration("none", 0, budget.max_kl, None, None, eps=eps)
    predicted, predicted_low = measured.predicted_agreement or (None, None)
    low, high = measured.agreement_interval or (None, None)
    return Calibration(
        measurable.inputs,
        measured.images,
        budget.max_kl,
        measured.kl,
        measured.agreement,
        measurable.kind,
        measured.decisions or None,
        measured.agreeing if measured.decisions else None,
        *measured.kl_interval,
        measured.kl_scatter,
        low,
        high,
        eps,
        budget.min_agreement,
        predicted,
        predicted_low,
    )


def _make_measurable(
    checkpoint: Checkpoint,
    config: FingerprintConfig,
    built: BuiltModel | None,
    digests: dict[str, str],
    device: "str | torch.device | None",
) -> MeasurableModel:
    where = checkpoint.source.name
    model = build_model(checkpoint, device) if built is None else built.on(device)
    many = config.calibration_images or DEFAULT_CALIBRATION_IMAGES
    if config.calibration:
        inputs, (search, report) = "images", split_user_images(config.calibration, model, SEARCH_IMAGES, many)
    else:
        inputs, search = "synthetic", lazy_synthetic_images(model, SEARCH_IMAGES, _SEARCH_SEED)
        report = lazy_synthetic_images(model, many, _REPORT_SEED)
    first = next(search.batches(1))
    kind = find_output_kind(model, first, config.output_kind, where)
    names = map_parameter_names(model.module, checkpoint, digests)
    chosen = [n for n in select_from_model(model.module, first, kind) if n in names]
    parameters = {names[n]: n for n in chosen if can_carry(checkpoint.tensors[names[n]])}
    if not parameters:
        raise CarrierError(f"{where} has none of the weights of the model that its configuration describes.")
    return MeasurableModel(model, kind, parameters, search, report, inputs)
