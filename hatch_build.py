"""Compiles the native passes, and makes the long description of a release from README.md.

Where there is no compiler, or `HF_FINGERPRINT_PURE` is set, the package is built without the passes, and numpy does
their work.
"""

import os
import re
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


NATIVE = "hf_fingerprint/_native"
STABLE_ABI = "cp311-abi3"
_LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?:|#|mailto:)(?P<path>[^)\s]+)\)")


def with_addresses(text: str, source: str) -> str:
    """Markdown whose relative links lead into a repository at an address."""
    kinds = {"!": "raw", "": "blob"}
    return _LINK.sub(lambda m: f"{m['image']}{m['text']}({source}/{kinds[m['image']]}/HEAD/{m['path']})", text)


class LongDescription(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = with_addresses(Path(self.root, "README.md").read_text("utf-8"), metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def compile_native(root: Path) -> Path | None:
    """Compiles the passes next to their source, and returns the library, or `None` if that can't be done here."""
    from setuptools import Distribution, Extension

    library = root / f"{NATIVE}.abi3.so"
    library.unlink(missing_ok=True)
    if os.environ.get("HF_FINGERPRINT_PURE"):
        return None
    options = ["-O3", "-ffp-contract=off", "-Wno-psabi"]  # no contraction: a product and a sum round as numpy's do
    source, header = str(root / f"{NATIVE}.c"), str(root / f"{NATIVE}_passes.h")
    native = Extension(
        NATIVE.replace("/", "."),
        [source],
        depends=[header],
        extra_compile_args=options,
        py_limited_api=True,
        optional=True,
    )
    command = Distribution({"name": "hf-fingerprint", "ext_modules": [native]}).get_command_obj("build_ext")
    command.build_lib, command.force = str(root), True
    command.ensure_finalized()
    command.run()
    return library if library.exists() else None


class NativePasses(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        library = compile_native(Path(self.root))
        if library is not None:
            platform = re.sub(r"[.-]", "_", sysconfig.get_platform())
            build_data["pure_python"], build_data["tag"] = False, f"{STABLE_ABI}-{platform}"
            build_data["force_include"][str(library)] = f"{NATIVE}.abi3.so"
