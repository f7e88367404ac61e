"""Options that several commands share."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_fingerprint.config import FingerprintConfig, PublishConfig, help_texts


Model = Annotated[str, typer.Argument(help="A folder, a weight file or a Hub id.", show_default=False)]
File = Annotated[
    str | None, typer.Option("--file", help="Which weight file of the folder or repo, where it has several.")
]
VaultFolder = Annotated[Path, typer.Option("--vault", help="The vault's folder.", show_default=False)]
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
    typer.Option("--as-base", help="Register the model as a base even if it is a copy of a base in the vault."),
]
AllScores = Annotated[
    bool,
    typer.Option(
        "--all-scores",
        help="Show the scores of those who are not accused too. They help an attacker: do not publish them.",
    ),
]
KnownBase = Annotated[str | None, typer.Option("--base", help="Where the base is, if it moved, or which one.")]
Identity = Annotated[
    Path | None, typer.Option("--identity", help="The tracing identity, if it isn't in the vault's folder.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="A file whose first line is the passphrase of the tracing identity."),
]


def model_reference(model: str, file: str | None) -> str:
    """The name of a model, or of the one of its files that is chosen."""
    from hf_fingerprint.checkpoints.naming import format_model_name

    return str(format_model_name(model, file))


def megabytes_to_bytes(megabytes: float) -> int:
    """What a limit in MB is in bytes.

    Raises:
        [`typer.BadParameter`]: for what is no number.
    """
    if not math.isfinite(megabytes):
        raise typer.BadParameter(f"{megabytes} is not a number of MB.")
    return int(megabytes * 1e6)
