"""`hf fingerprint ...`: the Hub's own command line finds our console script by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_hubs_command_line_dispatches_to_ours(tmp_path):
    scripts = Path(sys.executable).parent
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-fingerprint"
    folder.mkdir(parents=True)
    manifest = {
        "owner": "org",
        "repo": "hf-fingerprint",
        "repo_id": "org/hf-fingerprint",
        "short_name": "fingerprint",
        "executable_path": str(scripts / "hf-fingerprint"),
        "type": "python",
        "installed_at": "2026-11-22T00:00:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    environment = os.environ | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    def hf(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([scripts / "hf", *arguments], env=environment, capture_output=True, text=True)

    helped, failed = hf("fingerprint", "--help"), hf("fingerprint", "recipients", "--vault", str(tmp_path / "none"))

    assert helped.returncode == 0, helped.stderr
    assert "Usage: hf-fingerprint" in helped.stdout
    assert failed.returncode == 2
    assert "holds no vault" in failed.stderr
