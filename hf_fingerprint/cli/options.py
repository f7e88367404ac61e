"""Options that several commands share."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_fingerprint.config import FingerprintConfig, PublishConfig, help_texts


Model = Annotated[str, typer.Argument(help="Folder, weight file or Hub id of a model.", show_default=False)]
File = Annotated[str | None, typer.Option("--file", help="Weight file to read, if the folder or repo has several.")]
VaultFolder = Annotated[Path, typer.Option("--vault", help="Folder of the vault.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def config_option(config: Any, name: str) -> Any:
    """The option for a field of a config class, with the field's help text."""
    return typer.Option(f"--{name.replace('_', '-')}", help=help_texts(config)[name])


MaxKl = Annotated[float | None, config_option(FingerprintConfig, "max_kl")]
Calibration = Annotated[Path | None, config_option(FingerprintConfig, "calibration")]
Coalition = Annotated[int | None, config_option(FingerprintConfig, "coalition")]
ExpectedRecipients = Annotated[int | None, config_option(FingerprintConfig, "expected_recipients")]
Alpha = Annotated[float | None, config_option(FingerprintConfig, "alpha")]
Amplitude = Annotated[float | None, config_option(FingerprintConfig, "amplitude")]
Carriers = Annotated[str | None, config_option(FingerprintConfig, "carriers")]
Code = Annotated[str | None, config_option(FingerprintConfig, "code")]
OutputKind = Annotated[str | None, config_option(FingerprintConfig, "output_kind")]
CalibrationImages = Annotated[int | None, config_option(FingerprintConfig, "calibration_images")]
Gated = Annotated[str | None, config_option(PublishConfig, "gated")]
Disclose = Annotated[bool, config_option(PublishConfig, "disclose")]
BaseModel = Annotated[str | None, config_option(PublishConfig, "base_model")]
AsBase = Annotated[
    bool,
    typer.Option("--as-base", help="Register the model as a base even if it is a copy of a registered base."),
]
AllScores = Annotated[
    bool,
    typer.Option(
        "--all-scores",
        help="Show the scores of recipients who are not accused, too. They help an attacker: do not publish them.",
    ),
]
KnownBase = Annotated[
    str | None, typer.Option("--base", help="Id or location of the base, if it moved or if the vault has several.")
]
Identity = Annotated[
    Path | None, typer.Option("--identity", help="File of the tracing identity, if it is not in the vault's folder.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line is the passphrase of the tracing identity."),
]


def model_reference(model: str, file: str | None) -> str:
    """The name of a model, or of one file of it."""
    from hf_fingerprint.checkpoints.naming import format_model_name

    return str(format_model_name(model, file))


def megabytes_to_bytes(megabytes: float) -> int:
    """Converts MB to bytes.

    Raises:
        [`typer.BadParameter`]: if the value is not finite.
    """
    if not math.isfinite(megabytes):
        raise typer.BadParameter(f"{megabytes} is not a finite number of MB.")
    return int(megabytes * 1e6)
