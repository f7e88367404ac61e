"""The public names have complete types: `mypy --strict` accepts a script that uses all of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_fingerprint


SCRIPT = Path(__file__).with_name("user_script.py")
PACKAGE = Path(hf_fingerprint.__file__).parent
SKIPPED = "[mypy]\n[mypy-torch.*,timm.*,transformers.*]\nfollow_imports = skip\n"


def test_the_script_uses_every_public_name():
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text())))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}

    assert set(dir(hf_fingerprint)) <= used
    assert (PACKAGE / "py.typed").is_file() and (PACKAGE / "__init__.pyi").is_file()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param(SKIPPED, ["--allow-subclassing-any"], id="torch skipped", marks=pytest.mark.integration),
        pytest.param("[mypy]\n", [], id="torch followed", marks=pytest.mark.slow),  # a minute
    ],
)
def test_the_script_is_clean_under_strict_mypy(tmp_path, settings, options):
    (tmp_path / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--strict", *options]
    command += ["--follow-imports", "silent"]
    environment = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
    done = subprocess.run([*command, SCRIPT], capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert done.stdout.startswith("Success"), done.stdout + done.stderr
