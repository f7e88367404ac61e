"""Options that several commands share, and the panels of `--help`.

An option has one name, one help text and one meaning in all commands. What an option of a config class is called and
says stands in the class. A closed choice has a `Literal` type of `choices.py`, which help, completion and checks use.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from hf_fingerprint.choices import Gating
from hf_fingerprint.config import FingerprintConfig, PublishConfig
from hf_fingerprint.config_files import SavedConfig
from hf_fingerprint.errors import FingerprintError


if TYPE_CHECKING:
    from hf_fingerprint.vault import Vault

T = TypeVar("T")
Config = TypeVar("Config", FingerprintConfig, PublishConfig)
COMMON, CODE, HUB = "Common", "Code", "Hub"  # panels of `--help`; other options are in the first panel
VAULT_VARIABLE = "HF_FINGERPRINT_VAULT"
_PANELS: dict[type, str] = {FingerprintConfig: CODE, PublishConfig: HUB}
_TAG = re.compile(r"\[(?=[a-z#/@])")  # what rich would take for the start of a tag, and leave out


def argument(text: str, **settings: Any) -> Any:
    """An argument with a help text, and settings of [`typer.Argument`]."""
    return typer.Argument(help=_escape(text), show_default=False, **settings)


def option(name: str, text: str, panel: str | None = None, **settings: Any) -> Any:
    """An option with a help text, the panel of `--help` that shows it, and settings of [`typer.Option`]."""
    return typer.Option(name, help=_escape(text), rich_help_panel=panel, **settings)


def required(name: str, text: str, panel: str | None = None, **settings: Any) -> Any:
    """A required option with a help text."""
    return option(name, text, panel, show_default=False, **settings)


def config_option(field: "Field[Any]", panel: str | None = None) -> Any:
    """The option for a field of a config class, with the field's name and help text."""
    return option(f"--{field.name.replace('_', '-')}", field.metadata["help"], panel)


def complete_from(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The completion of a list of names that are separated by commas, or of a single name."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [before + comma + name for name in names() if name.startswith(begun)]

    return complete


def _escape(text: str) -> str:
    return _TAG.sub(r"\[", text)


Model = Annotated[str, argument("Folder, weight file or Hub id of a model.")]
File = Annotated[str | None, option("--file", "Weight file to read, if the folder or repo has several.")]
VaultFolder = Annotated[Path, required("--vault", "Folder of the vault.", COMMON, envvar=VAULT_VARIABLE)]
VaultArgument = Annotated[Path, argument("Folder of the vault, new or existing.", envvar=VAULT_VARIABLE)]
AsJson = Annotated[bool, option("--json", "Print JSON on stdout.", COMMON)]
_OF_CONFIGS = {each.name: config_option(each, panel) for config, panel in _PANELS.items() for each in fields(config)}
MaxKl = Annotated[float | None, _OF_CONFIGS["max_kl"]]
Coalition = Annotated[int | None, _OF_CONFIGS["coalition"]]
ExpectedRecipients = Annotated[int | None, _OF_CONFIGS["expected_recipients"]]
Alpha = Annotated[float | None, _OF_CONFIGS["alpha"]]
Gated = Annotated[Gating | None, _OF_CONFIGS["gated"]]
Disclose = Annotated[bool, _OF_CONFIGS["disclose"]]
BaseModel = Annotated[str | None, _OF_CONFIGS["base_model"]]
AsBase = Annotated[
    bool, option("--as-base", "Register the model as a base even if it is a copy of a registered base.")
]
Ancestor = Annotated[
    str | None,
    option(
        "--ancestor",
        "Folder, weight file or Hub id of the public model that the base was fine-tuned from, or none. Defaults to "
        "the recorded one, and for a new base to the base_model of its model card.",
    ),
]
AllScores = Annotated[
    bool,
    option(
        "--all-scores",
        "Show the scores of recipients who are not accused, too. They help an attacker: do not publish them.",
        COMMON,
    ),
]
KnownBase = Annotated[
    str | None, option("--base", "Id or location of the base, if it moved or if the vault has several.")
]
Identity = Annotated[
    Path | None, option("--identity", "File of the tracing identity, if it is not in the vault's folder.", COMMON)
]
PassphraseFile = Annotated[
    Path | None,
    option("--passphrase-file", "File whose first line is the passphrase of the tracing identity.", COMMON),
]


TokenEnv = Annotated[
    str | None,
    option(
        "--token-env",
        "Environment variable that holds the access token for the Hub. Defaults to the token of `hf auth login`.",
        HUB,
    ),
]
CacheDir = Annotated[
    Path | None, option("--cache-dir", "Folder for downloads from the Hub. Defaults to the Hub's own cache.", HUB)
]
Device = Annotated[
    str | None, option("--device", "Device that models run on, such as cuda. Defaults to the CPU.", HUB)
]


@dataclass(frozen=True)
class ModelFiles:
    """The options that choose a model's files, and reach them on the Hub."""

    revision: Annotated[
        str | None, option("--revision", "Branch, tag or commit on the Hub, as in org/name@revision.", HUB)
    ] = None
    token_env: TokenEnv = None
    cache_dir: CacheDir = None
    subfolder: Annotated[
        str | None, option("--subfolder", "Folder of the model in the repo or the local folder.", HUB)
    ] = None
    variant: Annotated[
        str | None, option("--variant", "Variant of the weights, such as fp16 for model.fp16.safetensors.", HUB)
    ] = None

    @property
    def access(self) -> dict[str, Any]:
        """The token and the cache as keywords of a public function."""
        return {"token": read_token(self.token_env), "cache_dir": self.cache_dir}

    @property
    def keywords(self) -> dict[str, Any]:
        """All of them as keywords of a public function."""
        return {"revision": self.revision, "subfolder": self.subfolder, "variant": self.variant} | self.access


def read_token(variable: str | None) -> str | None:
    """The access token in an environment variable, so that no process list shows it; `None` without a variable.

    Raises:
        [`FingerprintError`]: if the variable is not set. The error doesn't show its name.
    """
    token = None if variable is None else os.environ.get(variable, "").strip()
    if token == "":
        raise FingerprintError(
            "--token-env does not name an environment variable that holds a token: set the variable, and give its "
            "name, not the token."  # which may be what was given
        )
    return token


def _saved(kind: type[SavedConfig], name: str) -> Any:
    text = f"File, folder or Hub id with a {kind.FILE} that Python saved. The options that you give win."
    return Annotated[str | None, option(name, text, _PANELS[kind])]


_CONFIG_FILE, _MAX_LIST_BYTES = "config_file", 10**8
ConfigFile = _saved(FingerprintConfig, "--config")
PublishConfigFile = _saved(PublishConfig, "--publish-config")


def load_config(kind: type[Config], name: str | None, access: Mapping[str, Any] | None = None, **given: Any) -> Config:
    """A configuration of the options that are given, and of the saved one for the others if there is a name, which is
    reached with the token and the cache of `access`."""
    explicit = {field: value for field, value in given.items() if value is not None}
    return kind(**explicit) if name is None else replace(kind.from_pretrained(name, **(access or {})), **explicit)


def expand_options(command: Callable[..., T]) -> Callable[..., T]:
    """The command with options in place of each parameter whose type is a dataclass: one option for each field."""
    given = signature(command)
    groups: dict[str, Any] = {
        each.name: each.annotation for each in given.parameters.values() if is_dataclass(each.annotation)
    }

    @wraps(command)
    def run(**values: Any) -> T:
        made: dict[str, Any] = {}
        for name, group in sorted(groups.items(), key=lambda each: each[1] is FingerprintConfig):
            given = {each.name: values.pop(each.name) for each in fields(group) if each.name in values}
            if group is FingerprintConfig:
                made[name] = load_config(FingerprintConfig, values.pop(_CONFIG_FILE), _access(made), **given)
            else:
                made[name] = group(**given)
        return command(**values, **made)

    parameters: list[Parameter] = []
    for name, parameter in given.parameters.items():
        group = groups.get(name)
        parameters += [parameter] if group is None else [_parameter(e, _PANELS.get(group)) for e in fields(group)]
        if group is FingerprintConfig:
            parameters.append(Parameter(_CONFIG_FILE, Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile))
    run.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _access(made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The token and the cache among the options of a command, if it has such options."""
    return next((each.access for each in made.values() if isinstance(each, ModelFiles)), None)


def _parameter(field: "Field[Any]", panel: str | None) -> Parameter:
    """The parameter for a field: an option of its own if it has a help text, else the one in its type."""
    kind: Any = Annotated[field.type, config_option(field, panel)] if field.metadata else field.type
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def unlocked_vault(folder: Path, passphrase_file: Path | None, identity: Path | None) -> "Vault":
    """The vault in a folder, unlocked; see [`unlock`]."""
    from hf_fingerprint.vault import Vault

    vault = Vault(folder)
    unlock(vault, passphrase_file, identity)
    return vault


def unlock(vault: "Vault", passphrase_file: Path | None, identity: Path | None) -> None:
    """Unlocks a vault: with the identity that `vault unlock` keeps open, where a passphrase would be prompted for."""
    from hf_fingerprint.vault import find_passphrase
    from hf_fingerprint.vault.agent import find_identity
    from hf_fingerprint.vault.passphrase import is_prompted
    from hf_fingerprint.vault.sealing import AgeIdentity

    kept = find_identity(vault.public_key) if is_prompted(passphrase_file) else None
    if kept is None:
        vault.unlock(find_passphrase(passphrase_file), identity)
    else:
        vault.unlock_with(AgeIdentity(kept))


def model_reference(model: str, file: str | None) -> str:
    """The name of a model, or of one file of it."""
    from hf_fingerprint.checkpoints.naming import format_model_name

    return str(format_model_name(model, file))


def read_lines(file: Path) -> list[str]:
    """The lines of a list, without empty ones and those that begin with `#`.

    Raises:
        [`FingerprintError`]: if the file can't be read, is no text, is longer than 100 MB, or lists nothing.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_LIST_BYTES + 1)
        lines = [line.strip() for line in content.decode().splitlines()]
    except OSError as error:
        raise FingerprintError(f"{file} can't be read ({error.strerror}): give a file that lists suspects.") from None
    except UnicodeDecodeError:
        raise FingerprintError(f"{file} is not a text file in UTF-8: give a file that lists suspects.") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if len(content) > _MAX_LIST_BYTES or not found:
        problem = "is longer than 100 MB" if found else "lists no suspect"
        raise FingerprintError(f"{file} {problem}: give one path or Hub id on each line.")
    return found


def ancestor_input(ancestor: str | None) -> "str | Literal[False] | None":
    """The value of `--ancestor` as a public function takes it: `False` for none."""
    return False if ancestor == "none" else ancestor


def megabytes_to_bytes(megabytes: float) -> int:
    """Converts MB to bytes.

    Raises:
        [`typer.BadParameter`]: if the value is not finite.
    """
    if not math.isfinite(megabytes):
        raise typer.BadParameter(f"{megabytes} is not a finite number of MB.")
    return int(megabytes * 1e6)
