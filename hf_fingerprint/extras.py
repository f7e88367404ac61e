"""Names of a package that load when they are first used, as far as the libraries they need are installed.

A stub next to the package's `__init__.py` lists the names, for type checkers too: `from .module import Name as Name`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lazy_loader

from hf_fingerprint.errors import MissingExtraError


_EXTRAS = {"models": ("torch", "torchvision", "timm", "transformers", "accelerate", "PIL"), "privacy": ("sklearn",)}
_STUB_LINE = re.compile(r"^from \.([\w.]+) import (\w+) as \2$", re.MULTILINE)


def attach(
    package: str, file: str, libraries: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package whose stub lists its names.

    `dir()`, tab completion and `import *` have the names whose libraries are installed. The others raise a
    [`MissingExtraError`].

    Args:
        package (`str`): the package's `__name__`.
        file (`str`): its `__file__`.
        libraries (`dict[str, tuple[str, ...]]`, *optional*): the libraries outside the main dependencies that a module
            of the stub needs, by the module's name. The empty name stands for all other modules.
    """
    modules = defaultdict(list)
    needed: dict[str, tuple[str, ...]] = {}
    libraries = libraries or {}
    for module, name in _STUB_LINE.findall(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")):
        modules[module].append(name)
        needed[name] = libraries.get(module, libraries.get("", ()))
    load, _, names = lazy_loader.attach(package, submod_attrs=modules)

    def available() -> list[str]:
        missing = {library for library in set().union(*needed.values()) if find_spec(library) is None}
        return [name for name in names if missing.isdisjoint(needed[name])]

    def get_attribute(name: str) -> Any:
        if name == "__all__":
            return available()
        try:
            return load(name)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            extra = next((extra for extra, added in _EXTRAS.items() if library in added), None)
            if extra is None:
                raise
            sentence = f"{package}.{name} needs {library}: pip install 'hf-fingerprint[{extra}]'."
            raise MissingExtraError(sentence, name=library) from error

    return get_attribute, available
