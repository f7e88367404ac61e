"""No folder decides what runs, whichever way it comes in and whether or not assertions are left in the libraries."""

import json
import subprocess
import sys

import pytest

from tests.helpers.hostile_folders import KINDS, PAYLOAD
from tests.helpers.processes import environment


READ = (
    "trace a hostile suspect",
    "hash its payload",
    "add its payload",
    "trace its payload",
)  # what a pickle describes


def is_reading_of_weights(event: str) -> bool:
    """Whether all that happened is that a weight file was opened to be read; had it run, its marker would be there."""
    return event.startswith("open (") and f"/inner/{PAYLOAD}', 'r')" in event


# one that unpickles and one that imports code
SOME = ["checkpoint path", "code of its own type"]


def try_kinds(folder, options, names):
    quiet = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"), "1")
    command = [sys.executable, *options, "-m", "tests.helpers.hostile_entry_points", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(HF_HUB_OFFLINE="0", **quiet))
    assert done.returncode == 0, done.stderr[-2000:]
    tried = json.loads(done.stdout.splitlines()[-1])

    assert list(tried) == names
    ways = next(iter(tried.values())).keys()
    assert len(ways) >= 19
    for name, found in tried.items():
        assert found.keys() == ways
        for way, result in found.items():
            seen = [each for each in result["seen"] if way not in READ or not is_reading_of_weights(each)]
            assert seen == [], (name, way, result)
            assert "unexpected" not in result["ended"], (name, way, result)
        assert found["issue"]["ended"].startswith("0") or not KINDS[name].builds, (name, found["issue"])


@pytest.mark.integration
def test_some_hostile_folders_make_nothing_happen_at_any_entry_point(tmp_path):
    try_kinds(tmp_path, ["-O"], SOME)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["timm", "vit"])
@pytest.mark.parametrize("options", [[], ["-O"]], ids=["plain", "optimized"])
def test_no_hostile_folder_makes_anything_happen_at_any_entry_point(tmp_path, options, form):
    try_kinds(tmp_path, options, [name for name, kind in KINDS.items() if kind.form == form])
