"""Examples and scripts of the tests, run as a user runs them: in a process of their own."""

import os
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module, for instance `examples.demo`; see [`environment`]."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """The variables of a process that finds `examples` and `tests` from any folder, on one core, offline."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more
