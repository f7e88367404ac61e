"""Runs examples and test scripts in separate processes, as a user does, or faster in this process."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def module(name: str, *arguments: object) -> list[str]:
    """Returns the command that runs a module, for instance `examples.demo`; see [`environment`]."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def run_here(example: str, folder: Path, *arguments: object) -> tuple[str, str]:
    """Runs an example in this process, which has imported its dependencies, from a folder.

    Returns:
        what it printed on stdout and on stderr.
    """
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patches, redirect_stdout(out), redirect_stderr(err):
        patches.chdir(folder)
        patches.setattr(sys, "argv", [example, *map(str, arguments)])
        import_module(f"examples.{example}").main()
    return out.getvalue(), err.getvalue()


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a process that finds `examples` and `tests` from any folder, on one core, offline."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more
