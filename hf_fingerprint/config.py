"""What you choose when you register a base and when you publish copies, with the defaults; saved as JSON.

Each field carries its help text, from which the class's documentation and the options of the command line are made.
"""

import inspect
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hf_fingerprint.choices import (
    FAMILIES,
    GATES,
    KINDS,
    LAYOUTS,
    Family,
    Gating,
    Layout,
    OutputKind,
    wrong_choice,
)
from hf_fingerprint.config_files import LOCAL, SavedConfig
from hf_fingerprint.errors import CodeError, HubError


MAX_KL, SMALL_MAX_KL = 1e-3, 1e-4  # nats; the second where the first would change too many decisions
MIN_AGREEMENT = 0.995
ALPHA = 1e-6
COALITION, EXPECTED_RECIPIENTS = 20, 1000
MAX_COUNT = 10**9  # of colluders, recipients or images
DEFAULT_CALIBRATION_IMAGES = 1000  # images that the marked model is measured on
_Class = TypeVar("_Class", bound=type)


def _setting(text: str, default: Any = None, **metadata: Any) -> Any:
    """A field of a config class, with its help text."""
    return field(default=default, metadata={"help": text, **metadata})


def help_texts(config: Any) -> dict[str, str]:
    """The help text of each field of a config class."""
    return {each.name: each.metadata["help"] for each in fields(config)}


def _document_fields(config: _Class) -> _Class:
    """Adds the fields' types and help texts to a config class's docstring."""
    texts = help_texts(config)
    types = {each.name: inspect.formatannotation(each.type).removeprefix("pathlib.") for each in fields(config)}
    lines = [f"    {name} (`{types[name]}`): {text}" for name, text in texts.items()]
    config.__doc__ = "\n".join([inspect.cleandoc(str(config.__doc__)), "", "Attributes:", *lines])
    return config


@_document_fields
@dataclass(frozen=True)
class FingerprintConfig(SavedConfig):
    """How a base is marked. `None` stands for the default, and for a registered base for what its record holds.

    [`~SavedConfig.save_pretrained`] writes `fingerprint_config.json`, without `calibration`, which is a folder of this
    machine.
    """

    FILE: ClassVar[str] = "fingerprint_config.json"

    max_kl: float | None = _setting(
        "Output budget: the largest KL divergence between base and copy, in nats, as the mean over images "
        "and copies. Defaults to 1e-3 as long as 99.5 % of the decisions stay the same, else to 1e-4."
    )
    calibration: Path | None = _setting(
        "Folder of images to measure the output on. Defaults to synthetic images.", **{LOCAL: True}
    )
    coalition: int | None = _setting("Number of colluders that the code is designed for. Defaults to 20.")
    expected_recipients: int | None = _setting(
        "Number of recipients that the certified coalition is computed for. Defaults to 1000."
    )
    alpha: float | None = _setting(
        "Bound on the probability that a trace accuses any innocent, above 0 and at most 0.05. Defaults to 1e-6."
    )
    amplitude: float | None = _setting(
        "Fixed amplitude of the mark, as a share of each row's root mean square, instead of a budget. Use "
        "it for a base that will be trained from scratch, or whose output can't be measured."
    )
    carriers: Layout | None = _setting(
        "spread marks all tensors that can carry; compact marks a few adjacent ones, so that copies share "
        "nearly all bytes but withstand less. Defaults to spread."
    )
    code: Family | None = _setting(
        "Family of the code: tardos, nuida or fair_signs. Defaults to fair_signs for up to 2 colluders, "
        "and to tardos for more."
    )
    output_kind: OutputKind | None = _setting(
        "Kind of the model's output: single_label, multi_label, dense or features. Defaults to what the "
        "model's configuration says."
    )
    calibration_images: int | None = _setting(
        "Maximum number of images to measure the marked model on. Defaults to 1000."
    )
    min_agreement: float | None = _setting(
        "Smallest share of decisions, such as top-1 classes, that copies have in common with the base. Defaults to "
        "0.995 if neither a KL nor an amplitude is given, and to none otherwise."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from hf_fingerprint.codes import check_alpha  # scipy takes long to import

        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, choices in (("carriers", LAYOUTS), ("code", FAMILIES), ("output_kind", KINDS)):
            if given.get(name, choices[0]) not in choices:
                raise CodeError(wrong_choice(name, given[name], choices))
        for name in ("coalition", "expected_recipients", "calibration_images"):
            if not 1 <= given.get(name, 1) <= MAX_COUNT:
                raise CodeError(f"`{name}` must be at least 1 and at most {MAX_COUNT:,}, got {given[name]}.")
        for name in ("max_kl", "amplitude"):
            if not 0 < given.get(name, 1) <= 1:
                raise CodeError(f"`{name}` must be above 0 and at most 1, got {given[name]}.")
        if not 0 < given.get("min_agreement", 0.5) < 1:
            raise CodeError(f"`min_agreement` must be above 0 and below 1, got {self.min_agreement}.")
        if self.alpha is not None:
            check_alpha(self.alpha)


@_document_fields
@dataclass(frozen=True)
class PublishConfig(SavedConfig):
    """How copies are published on the Hub. [`~SavedConfig.save_pretrained`] writes `publish_config.json`."""

    FILE: ClassVar[str] = "publish_config.json"

    private: bool = _setting("Whether the variant repos are private.", default=True)
    gated: Gating | None = _setting("Gate the variant repos: auto or manual approval. Needed to give accounts access.")
    disclose: bool = _setting(
        "Disclose the fingerprint in the model card, together with the commitment to it.", default=False
    )
    base_model: str | None = _setting(
        "Hub id of the base for the model card. Defaults to where the base was registered from."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gated is not None and self.gated not in GATES:
            raise HubError(wrong_choice("gated", self.gated, GATES))
