"""Registers a network and traces a permuted copy of it, all on a device that is no CPU; see `faux_device`."""

import sys
import warnings
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import save_file

from hf_fingerprint import issue, trace
from hf_fingerprint.attacks import ChannelPermutation
from hf_fingerprint.registration import register
from tests.helpers import faux_device
from tests.helpers.small_models import SETTINGS, build, save_timm, unlocked_vault


def main(root: Path) -> None:
    warnings.simplefilter("ignore")
    model, vault = save_timm(root / "model", "test_resnet"), unlocked_vault(root / "vault")
    with patch("hf_fingerprint.registration.measuring.DEFAULT_CALIBRATION_IMAGES", 16):
        base = register(model, vault, SETTINGS, device=faux_device.NAME)
    registered = faux_device.ran.count("aten::convolution_overrideable")
    copy = issue(model, "alice", vault, root / "copy").path
    permuted = ChannelPermutation()(build(copy).module.state_dict())
    save_file({name: values.contiguous() for name, values in permuted.items()}, root / "suspect.safetensors")
    found = trace(root / "suspect.safetensors", vault, device=faux_device.NAME)
    traced = faux_device.ran.count("aten::convolution_overrideable") - registered
    accused = " ".join(score.recipient for score in found.accused)
    sys.stdout.write(f"{registered} {traced} {base.calibration.kl} {accused}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
