"""Runs a script in two processes that start at the same time."""

import subprocess
import sys
from pathlib import Path


def run_two_and_get_errors(script: str, folder: Path) -> list[str]:
    """Runs a script with a folder and `one` or `two` as arguments, twice at once, and returns what each says on
    stderr. It prints `ready` and reads a line before it begins."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [worker.communicate(timeout=60)[1] for worker in workers]
