import re
import subprocess

import pytest

from tests.helpers.processes import environment, module


pytestmark = pytest.mark.slow


def test_an_owner_and_two_data_holders_train_in_private_and_the_leaked_copy_is_traced(tmp_path):
    arguments = ["--out", tmp_path / "out", "--data", "digits", "--images", "400", "--steps", "30"]
    command = module("examples.private_training", *arguments)
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    printed = " ".join(done.stdout.split())
    assert re.search(r"accused: the copy made for alice \([^)]*\)\. 3 copies tested", printed)
    before, after = (float(re.search(rf"accuracy {when}: ([\d.]+)%", printed)[1]) for when in ("before", "after"))
    assert after > before
    ssim = r": PSNR [\d.]+ dB, SSIM ([\d.]+)"
    clear, hidden = (float(re.search(how + ssim, printed)[1]) for how in ("plain split", "partitioned"))
    assert hidden < 0.75 * clear
    # twice 30 steps, two data holders, 32 images of 33 numbers and 10 logits each, and two headers a step
    assert f"{60 * 2 * (4 * 32 * (33 + 10) + 144):,} bytes to the owner, {60 * 2 * (4 * 320 + 72):,} back" in printed
    assert re.search(r"membership of the released model: AUC 0\.\d{3}", printed)
