"""The options by which a model on the Hub is named and read, with the meaning they have in the Hub's libraries.

```python
options = HubOptions(revision="v2", subfolder="vision", variant="fp16")
resolve("org/name", options=options)
```
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_fingerprint.checkpoints.choosing import choose_weights
from hf_fingerprint.checkpoints.naming import (
    HubId,
    LocalFile,
    check_inner_path,
    exists,
    format_model_name,
    parse_name,
)
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.printable import printable


_VARIANT = re.compile(r"[\w-]+(\.[\w-]+)*")
_IN_NAMES = frozenset(":@")  # separate the parts of a recorded name


@dataclass(frozen=True)
class HubOptions:
    """Which files of a model to read, and how to reach them on the Hub.

    The public functions take the same options as keywords. They mean what they mean in `from_pretrained` of
    transformers and diffusers, and in huggingface_hub.

    Args:
        revision (`str`, *optional*): branch, tag or commit on the Hub, as in `org/name@revision`. Defaults to the
            repo's default branch.
        token (`str` or `bool`, *optional*): access token for the Hub. Defaults to the one you logged in with (`hf auth
            login`, `HF_TOKEN`); `True` requires that one, `False` sends none.
        cache_dir (`str` or `Path`, *optional*): folder for downloads. Defaults to the Hub's cache (`HF_HUB_CACHE`).
        subfolder (`str`, *optional*): folder of the model inside the repo or the local folder.
        variant (`str`, *optional*): weights of that name, such as `"fp16"` for `model.fp16.safetensors` or
            `model.safetensors.index.fp16.json`.

    Raises:
        [`CheckpointError`]: if an option is not of that form. The error never shows a token.
    """

    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    subfolder: str | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and not _is_text(self.revision):
            raise CheckpointError("revision is not a name: give a branch, a tag or a commit, or leave it out.")
        if isinstance(self.token, str):
            if not self.token.isascii() or not self.token.isprintable() or not self.token or " " in self.token:
                raise CheckpointError(
                    "token is empty, or has characters that no token has: give the text that begins with hf_."
                )
        elif not (self.token is None or isinstance(self.token, bool)):
            raise CheckpointError(f"token is a {type(self.token).__name__}: give its text, True, False or None.")
        if self.cache_dir is not None:
            if not isinstance(self.cache_dir, str | Path) or not str(self.cache_dir):
                raise CheckpointError("cache_dir is not a path: give a folder, or leave it out.")
            object.__setattr__(self, "cache_dir", str(Path(self.cache_dir).expanduser()))
        if self.subfolder is not None:
            object.__setattr__(self, "subfolder", _check_subfolder(self.subfolder))
        if self.variant is not None and not (isinstance(self.variant, str) and _VARIANT.fullmatch(self.variant)):
            raise CheckpointError(
                f"{printable(str(self.variant))} is not the name of a variant: give one such as fp16."
            )

    @classmethod
    def for_model(
        cls,
        model: object,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        subfolder: str | None = None,
        variant: str | None = None,
    ) -> "HubOptions":
        """The options for a model. One in memory has no files to choose from, but its base may be on the Hub.

        Raises:
            [`CheckpointError`]: if the model is no path or Hub id, and `revision`, `subfolder` or `variant` is given.
        """
        chosen = {"revision": revision, "subfolder": subfolder, "variant": variant}
        given = [name for name, value in chosen.items() if value is not None]
        if given and not isinstance(model, str | Path):
            raise CheckpointError(
                f"{given[0]} chooses files of a path or a Hub id, and a {type(model).__name__} has none: leave "
                f"{given[0]} out."
            )
        return cls(revision, token, cache_dir, subfolder, variant)

    @property
    def access(self) -> "HubOptions":
        """The token and the cache alone, which hold for other models too, such as the base of a suspect."""
        return HubOptions(token=self.token, cache_dir=self.cache_dir)

    @property
    def keywords(self) -> dict[str, Any]:
        """All options as keywords of a public function."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def download(self) -> dict[str, Any]:
        """The token and the cache as keywords of huggingface_hub's download functions."""
        return {"token": self.token, "cache_dir": self.cache_dir}


NO_OPTIONS = HubOptions()


def locate(name: str | Path, file: str | None = None, options: HubOptions = NO_OPTIONS) -> Path | LocalFile | HubId:
    """The place that a model name and its options refer to, as [`parse_name`] returns it.

    Args:
        name (`str` or `Path`): a model name; see [`resolve`].
        file (`str`, *optional*): weight file in the folder or repo.
        options ([`HubOptions`], *optional*): the options.

    Raises:
        [`CheckpointError`]: if there is no such place, or an option contradicts the name or another one.
    """
    location = parse_name(format_model_name(name, file))
    chosen = None if isinstance(location, Path) else location.file
    if options.variant is not None and chosen is not None:
        raise CheckpointError(
            f"{name} is asked for its file {printable(chosen)} and for variant {options.variant}: choose one of them."
        )
    if isinstance(location, HubId):
        revision = _agree(name, "revision", location.revision, options.revision)
        subfolder = _agree(name, "subfolder", location.subfolder, options.subfolder)
        return location._replace(revision=revision, subfolder=subfolder, variant=options.variant)
    try:
        return _locate_here(location, options)
    except OSError as error:
        raise CheckpointError(f"{name} can't be read: {error.strerror or error}.") from None


def _locate_here(location: Path | LocalFile, options: HubOptions) -> Path | LocalFile:
    """The folder or file on this machine that the options choose."""
    top = location.folder if isinstance(location, LocalFile) else location
    if options.revision is not None:
        raise CheckpointError(
            f"{top} is on this machine and has no revisions: leave out revision, or write hf-hub:org/name for the Hub."
        )
    if options.subfolder is None and options.variant is None:
        return location
    if not top.is_dir():
        option = "subfolder" if options.subfolder is not None else "variant"
        raise CheckpointError(f"{top} is a file, in which {option} can't choose: leave it out, or give the folder.")
    folder = top if options.subfolder is None else top / options.subfolder
    if not exists(folder) or not folder.is_dir():
        raise CheckpointError(f"{top} has no folder {options.subfolder}: check the spelling of subfolder.")
    if not folder.resolve().is_relative_to(top.resolve()):
        raise CheckpointError(f"{folder} is a link to outside {top}: give that folder itself, without subfolder.")
    if isinstance(location, LocalFile):
        return LocalFile(folder, location.file)
    if options.variant is None:
        return folder
    names = [entry.name for entry in folder.iterdir() if not entry.is_dir()]
    return LocalFile(folder, choose_weights(names, str(folder), options.variant))


def _agree(name: str | Path, option: str, named: str | None, given: str | None) -> str | None:
    """The value that the name or the option gives, or both."""
    if named is not None and given is not None and named != given:
        raise CheckpointError(f"{name} names {option} {named}, and {option} is {printable(given)}: give one of them.")
    return given if named is None else named


def _check_subfolder(subfolder: object) -> str | None:
    """The normalized path of a folder inside a model's folder or repo; `None` for the folder itself."""
    if not isinstance(subfolder, str):
        raise CheckpointError(f"subfolder is a {type(subfolder).__name__}: give a path such as vision/encoder.")
    if subfolder and (not _is_text(subfolder) or not _IN_NAMES.isdisjoint(subfolder)):
        raise CheckpointError(f"subfolder {printable(subfolder)} has characters that no folder's name may have.")
    return check_inner_path(subfolder, "folders") or None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable() and len(value) <= 1024
