"""Options that several commands share."""

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from hf_fingerprint.config import FingerprintConfig, PublishConfig


if TYPE_CHECKING:
    from hf_fingerprint.vault import Vault

T = TypeVar("T")


def argument(text: str) -> Any:
    """A required argument with a help text."""
    return typer.Argument(help=text, show_default=False)


def option(name: str, text: str, **settings: Any) -> Any:
    """An option with a help text, and settings of [`typer.Option`]."""
    return typer.Option(name, help=text, **settings)


def required(name: str, text: str, **settings: Any) -> Any:
    """A required option with a help text."""
    return typer.Option(name, help=text, show_default=False, **settings)


def config_option(field: "Field[Any]") -> Any:
    """The option for a field of a config class, with the field's name and help text."""
    return option(f"--{field.name.replace('_', '-')}", field.metadata["help"])


Model = Annotated[str, argument("Folder, weight file or Hub id of a model.")]
File = Annotated[str | None, option("--file", "Weight file to read, if the folder or repo has several.")]
VaultFolder = Annotated[Path, required("--vault", "Folder of the vault.")]
AsJson = Annotated[bool, option("--json", "Print JSON on stdout.")]
_FIELDS = {each.name: each for config in (FingerprintConfig, PublishConfig) for each in fields(config)}
MaxKl = Annotated[float | None, config_option(_FIELDS["max_kl"])]
Coalition = Annotated[int | None, config_option(_FIELDS["coalition"])]
ExpectedRecipients = Annotated[int | None, config_option(_FIELDS["expected_recipients"])]
Alpha = Annotated[float | None, config_option(_FIELDS["alpha"])]
Gated = Annotated[str | None, config_option(_FIELDS["gated"])]
Disclose = Annotated[bool, config_option(_FIELDS["disclose"])]
BaseModel = Annotated[str | None, config_option(_FIELDS["base_model"])]
AsBase = Annotated[
    bool, option("--as-base", "Register the model as a base even if it is a copy of a registered base.")
]
AllScores = Annotated[
    bool,
    option(
        "--all-scores",
        "Show the scores of recipients who are not accused, too. They help an attacker: do not publish them.",
    ),
]
KnownBase = Annotated[
    str | None, option("--base", "Id or location of the base, if it moved or if the vault has several.")
]
Identity = Annotated[
    Path | None, option("--identity", "File of the tracing identity, if it is not in the vault's folder.")
]
PassphraseFile = Annotated[
    Path | None, option("--passphrase-file", "File whose first line is the passphrase of the tracing identity.")
]


def expand_options(command: Callable[..., T]) -> Callable[..., T]:
    """The command with options in place of each parameter whose type is a dataclass: one option for each field."""
    given = signature(command)
    groups: dict[str, Any] = {
        each.name: each.annotation for each in given.parameters.values() if is_dataclass(each.annotation)
    }

    @wraps(command)
    def run(**values: Any) -> T:
        made = {
            name: group(**{each.name: values.pop(each.name) for each in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **made)

    parameters: list[Parameter] = []
    for name, parameter in given.parameters.items():
        parameters += map(_parameter, fields(groups[name])) if name in groups else [parameter]
    run.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _parameter(field: "Field[Any]") -> Parameter:
    """The parameter for a field: an option of its own if it has a help text, else the one in its type."""
    kind: Any = Annotated[field.type, config_option(field)] if field.metadata else field.type
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def unlocked_vault(folder: Path, passphrase_file: Path | None, identity: Path | None) -> "Vault":
    """The vault in a folder, unlocked."""
    from hf_fingerprint.vault import Vault, find_passphrase

    vault = Vault(folder)
    vault.unlock(find_passphrase(passphrase_file), identity)
    return vault


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
