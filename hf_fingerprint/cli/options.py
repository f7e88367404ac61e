"""Options that several commands share."""

import math
from pathlib import Path
from typing import Annotated

import typer


Model = Annotated[str, typer.Argument(help="A folder, a weight file or a Hub id.", show_default=False)]
File = Annotated[
    str | None, typer.Option("--file", help="Which weight file of the folder or repo, where it has several.")
]
VaultFolder = Annotated[Path, typer.Option("--vault", help="The vault's folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
MaxKl = Annotated[
    float | None,
    typer.Option(
        "--max-kl", help="Output budget in nats: the largest KL divergence between base and copies, on average. [1e-4]"
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="A folder of images to measure the budget on; synthetic ones if not given."),
]
Coalition = Annotated[
    int | None, typer.Option("--coalition", help="Colluders to design the code for; up to 2 gives fair signs. [20]")
]
ExpectedRecipients = Annotated[
    int | None,
    typer.Option("--expected-recipients", help="Recipients to work out the certified coalition for. [1000]"),
]
Alpha = Annotated[
    float | None,
    typer.Option("--alpha", help="Bound on the probability that a trace accuses any innocent, at most 0.05. [1e-6]"),
]
Amplitude = Annotated[
    float | None,
    typer.Option(
        "--amplitude",
        help="A fixed amplitude instead of a budget: for a base that is to be trained from scratch, or whose output "
        "can't be measured.",
    ),
]
Carriers = Annotated[
    str | None,
    typer.Option(
        "--carriers", help="spread over all layers, or compact: copies share nearly all bytes, and withstand less."
    ),
]
Code = Annotated[
    str | None,
    typer.Option("--code", help="tardos, nuida or fair_signs; by default as the coalition asks for, see `design`."),
]
OutputKind = Annotated[
    str | None,
    typer.Option(
        "--output-kind",
        help="single_label, multi_label, dense or features: what the output is, where the configuration doesn't say.",
    ),
]
CalibrationImages = Annotated[
    int | None,
    typer.Option("--calibration-images", help="Images to measure the marked model on, at most. [1000]"),
]
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
