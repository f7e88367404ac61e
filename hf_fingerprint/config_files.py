"""Configurations as JSON files, which hold nothing secret: saved in a folder, loaded from one or from a repo.

A file has the fields by name. It may come from anybody, so it is read within bounds, and a field or a value that the
class does not know is an error.
"""

import json
from collections.abc import Mapping
from dataclasses import Field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from hf_fingerprint.choices import close_names
from hf_fingerprint.errors import CheckpointError, CodeError, FingerprintError
from hf_fingerprint.printable import printable


LOCAL = "local"  # in a field's metadata: its value holds on this machine alone, so it is not saved
_MAX_BYTES, _MAX_VALUES = 64_000, 1_000
_TYPES: dict[type, tuple[Any, Any, str]] = {  # what is accepted, what needs no conversion, and what to say
    bool: (bool, bool, "true or false"),
    int: (Integral, int, "an integer"),
    float: (Real, int | float, "a number"),
    str: (str, str, "text"),
    Path: (str | Path, Path, "a path"),
}


class SavedConfig:
    """Base class of the configurations: dataclasses of plain values that are saved as JSON."""

    FILE: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON types, without paths, which hold on this machine alone."""
        return {field.name: getattr(self, field.name) for field in _saved_fields(type(self))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these values by field name, and defaults for the other fields.

        Raises:
            [`FingerprintError`]: if a field is unknown, or a value is wrong.
        """
        names = [field.name for field in _saved_fields(cls)]
        for name in values:
            if name not in names:
                remedy = close_names(str(name), names) or f": choose from {', '.join(names)}."
                if name in {field.name for field in fields(cls)}:  # type: ignore[arg-type]
                    remedy = ", since it is a path of this machine: give it apart from the saved fields."
                raise FingerprintError(f"A saved {cls.__name__} has no field {printable(str(name))[:80]}{remedy}")
        return cls(**values)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Saves the configuration in a folder, replacing an earlier one at once. Paths, which hold on this machine
        alone, are left out.

        Args:
            folder (`str` or `Path`): the folder, which is created if it doesn't exist.

        Returns:
            `Path`: the file.

        Raises:
            [`FingerprintError`]: if the file can't be written.
        """
        from hf_fingerprint.checkpoints import disk_full_error, is_disk_full_error, sync

        path = Path(folder) / self.FILE
        partial = path.with_name(f"tmp-{self.FILE}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # of an interrupted save, or a link to elsewhere
            try:
                with partial.open("x", encoding="utf-8") as stream:
                    stream.write(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
                sync(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if is_disk_full_error(error):
                raise disk_full_error(path.parent) from None
            raise FingerprintError(f"{path} can't be written ({error.strerror}): choose another folder.") from None
        return path

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        subfolder: str | None = None,
    ) -> Self:
        """Loads a configuration.

        Args:
            name (`str` or `Path`): a folder or Hub id (`org/name`) with the file that `save_pretrained` writes, or
                such a file itself, under any name.
            revision, token, cache_dir, subfolder (*optional*): see [`HubOptions`].

        Raises:
            [`FingerprintError`]: if there is no such file, or it is not a configuration of this class.
        """
        from hf_fingerprint.checkpoints.limits import parse_json, read_bounded

        path = _find_file(cls.FILE, name, revision, token, cache_dir, subfolder)
        try:
            content = read_bounded(path, _MAX_BYTES, "a configuration", FingerprintError, allow_pipe=True)
            values = parse_json(content, _MAX_VALUES, strict=True)
        except OSError as error:
            raise FingerprintError(f"{path} can't be read ({error.strerror}): check the path.") from None
        except ValueError:
            raise FingerprintError(f"{path} is not JSON: save it again with save_pretrained.") from None
        if not isinstance(values, dict):
            raise FingerprintError(f"{path} is not a configuration: save it again with save_pretrained.")
        try:
            return cls.from_dict(values)
        except FingerprintError as error:
            raise type(error)(f"{path}: {error}") from None


def _saved_fields(cls: type) -> list["Field[Any]"]:
    return [field for field in fields(cls) if not field.metadata.get(LOCAL)]


def _find_file(
    file: str,
    name: str | Path,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    subfolder: str | None,
) -> Path:
    """The path of a configuration, downloaded if it is on the Hub."""
    from hf_fingerprint.checkpoints.hub_client import fetch_snapshot
    from hf_fingerprint.checkpoints.hub_options import HubOptions, locate
    from hf_fingerprint.checkpoints.naming import LocalFile

    options = HubOptions(revision, token, cache_dir, subfolder)
    place = locate(name, options=options)
    if isinstance(place, LocalFile):
        return place.path
    if isinstance(place, Path):
        path = place / file if place.is_dir() else place
        if not path.exists():
            raise FingerprintError(f"{place} has no {file}: save one there with save_pretrained, or check the folder.")
        return path
    inner = "/".join(filter(None, (place.subfolder, place.file or file)))

    def wanted(names: list[str]) -> list[str]:
        if inner not in names:
            raise CheckpointError(f"{place.repo} has no {inner}: check the repo, its revision and its subfolder.")
        return [inner]

    folder, _ = fetch_snapshot(place.repo, place.revision, wanted, options.access)
    return folder / inner


def _checked(field: "Field[Any]", value: Any) -> Any:
    """A field's value, as the plain type of the field.

    Raises:
        [`FingerprintError`]: if it is of another type.
    """
    kinds = get_args(field.type) or (field.type,)
    if value is None and NoneType in kinds:
        return None
    kind = next(each for each in kinds if each is not NoneType)
    if get_origin(kind) is Literal:
        kind = str
    accepted, plain, what = _TYPES[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise CodeError(f"`{field.name}` must be {what}, got {printable(str(value))[:80]}.")
    return value if isinstance(value, plain) else kind(value)
