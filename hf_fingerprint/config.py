"""What is decided when a base is registered and when copies are published, with the defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_fingerprint.codes import FAMILIES, check_alpha
from hf_fingerprint.errors import CodeError


MAX_KL, ALPHA = 1e-4, 1e-6
COALITION, EXPECTED_RECIPIENTS = 20, 1000
DEFAULT_CALIBRATION_IMAGES = 1000  # images that the marked model is measured on
LAYOUTS = ("spread", "compact")
KINDS = ("single_label", "multi_label", "dense", "features")  # of output


@dataclass(frozen=True)
class FingerprintConfig:
    """What is decided when a base is registered; `None` stands for the default, and for a known base for its record.

    Attributes:
        max_kl (`float`, *optional*, defaults to 1e-4): the output budget: the largest KL divergence between base and
            copy, in nats, as the mean over images and copies; one copy's own scatters about it, and how much is
            measured too.
        calibration (`Path`, *optional*): a folder of images to measure it on; synthetic ones by default.
        coalition (`int`, *optional*, defaults to 20): the number of colluders to design the code for; up to 2 gives
            fair signs, more a Tardos code, unless `code` says otherwise.
        expected_recipients (`int`, *optional*, defaults to 1,000): the number of recipients that the certified
            coalition is computed for.
        alpha (`float`, *optional*, defaults to 1e-6): the bound on the probability that a trace accuses any innocent,
            at most 0.05.
        amplitude (`float`, *optional*): a fixed amplitude, as a share of each row's root mean square, instead of the
            budget: for a base that is the initialization of a training from scratch, whose output means nothing yet,
            or whose output can't be measured.
        carriers (`str`, *optional*, defaults to `"spread"`): `"spread"` marks all tensors that can carry, `"compact"`
            a few that lie together, so that copies share nearly all of their bytes, at a cost in robustness.
        code (`str`, *optional*): the code's family, one of `FAMILIES`: `"tardos"`, `"nuida"` or `"fair_signs"`.
        output_kind (`str`, *optional*): what the model's output is, one of `KINDS`, where its configuration doesn't
            say: `"single_label"`, `"multi_label"`, `"dense"` or `"features"`; see `registration/outputs.py` for what
            `max_kl` bounds then.
        calibration_images (`int`, *optional*, defaults to 1,000): how many images to measure the marked model on, at
            most, besides the 32 that its strength is searched on.
    """

    max_kl: float | None = None
    calibration: Path | None = None
    coalition: int | None = None
    expected_recipients: int | None = None
    alpha: float | None = None
    amplitude: float | None = None
    carriers: str | None = None
    code: str | None = None
    output_kind: str | None = None
    calibration_images: int | None = None

    def __post_init__(self) -> None:
        if self.carriers not in (None, *LAYOUTS):
            raise CodeError(f"Carriers are laid out {' or '.join(LAYOUTS)}, not {self.carriers}: choose --carriers.")
        if self.code not in (None, *FAMILIES):
            raise CodeError(f"There is no code called {self.code}: choose --code {', '.join(FAMILIES)}.")
        if self.output_kind not in (None, *KINDS):
            raise CodeError(f"There is no output of kind {self.output_kind}: choose --output-kind {', '.join(KINDS)}.")
        if self.calibration_images is not None and self.calibration_images < 1:
            raise CodeError("The marked model must be measured on 1 image or more: choose --calibration-images.")
        if self.max_kl is not None and not 0 < self.max_kl <= 1:
            raise CodeError(f"A budget of {self.max_kl} nats can't be spent: choose --max-kl above 0 and at most 1.")
        if self.alpha is not None:
            check_alpha(self.alpha)
        if self.amplitude is not None and not 0 < self.amplitude <= 1:
            raise CodeError(f"`amplitude` must be above 0 and at most 1, got {self.amplitude}.")
        if any(count is not None and count < 1 for count in (self.coalition, self.expected_recipients)):
            raise CodeError("The coalition and the planned number of recipients must be 1 or more.")


@dataclass(frozen=True)
class PublishConfig:
    """How variants are published.

    Attributes:
        private (`bool`, *optional*, defaults to `True`): whether the repos are private.
        gated (`str`, *optional*): `"auto"` or `"manual"`: access is asked for on the repo's page.
        disclose (`bool`, *optional*, defaults to `False`): whether the card tells of the fingerprint, with the
            commitment to it.
        base_model (`str`, *optional*): the base's Hub id for the card, if it was not registered from there.
    """

    private: bool = True
    gated: Literal["auto", "manual"] | None = None
    disclose: bool = False
    base_model: str | None = None
