"""What measuring many images may allocate: the images of a batch, and what a model makes of these."""

import json
import subprocess
import sys
import tracemalloc

import pytest
import torch

from hf_fingerprint.models import BuiltModel, fit_batch_size, lazy_synthetic_images
from hf_fingerprint.registration.output_comparison import BATCH
from tests.helpers.processes import ROOT


pytestmark = pytest.mark.integration


def shaped(size: int) -> BuiltModel:
    return BuiltModel(torch.nn.Identity(), (3, size, size), (0.5,) * 3, (0.5,) * 3, None)


def test_a_thousand_synthetic_images_take_the_memory_of_a_block():
    images = lazy_synthetic_images(shaped(96), 1000)
    one = 3 * 96 * 96 * 4  # bytes
    tracemalloc.start()
    try:
        seen = sum(len(batch) for batch in images.batches(8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert seen == 1000
    assert peak < 150 * one


def test_fewer_large_images_go_through_a_model_at_once():
    assert fit_batch_size(32 * 32, BATCH) == fit_batch_size(224 * 224, BATCH) == BATCH
    assert fit_batch_size(384 * 384, BATCH) == 2
    assert fit_batch_size(4000 * 4000, BATCH) == 1


MEASURED = """
import json, resource, sys
import torch
from safetensors.torch import save_file
from tests.helpers.tiny_built import tiny
from hf_fingerprint.blackbox.trigger_set.build import build_trigger_set
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.registration import analyze_base
from hf_fingerprint.config import FingerprintConfig
from hf_fingerprint.registration import measuring

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def work(built, many):
    if sys.argv[1] == "triggers":
        build_trigger_set(built, {"head.weight": "head.weight"}, bytes(32), "base", count=20, decoys=2, steps=1)
        return
    with open_checkpoint(sys.argv[2]) as checkpoint:
        settings = FingerprintConfig(coalition=2, expected_recipients=4, calibration_images=many)
        analyze_base(checkpoint, settings, built=built)

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 7, 4)
        self.body = torch.nn.Conv2d(8, 64, 7)
        self.head = torch.nn.Linear(64, 5)

    def forward(self, images):
        return self.head(self.body(self.stem(images)).mean((2, 3)))

from dataclasses import replace
small, large = tiny(size=32), tiny(size=int(sys.argv[3]))
if sys.argv[1] == "calibration":
    module = Wide().eval()
    save_file(module.state_dict(), sys.argv[2], {"format": "pt"})
    small, large = (replace(each, module=module) for each in (small, large))
if sys.argv[1] == "triggers":
    from hf_fingerprint.blackbox.trigger_set import build
    build.N_SYNTHETIC, many = 64, build.N_SYNTHETIC
    work(small, 64)
    build.N_SYNTHETIC = many
else:
    work(small, 64)
before = peak()
work(large, 1000)
print(json.dumps(peak() - before))
"""


@pytest.mark.parametrize("job", [pytest.param("triggers", marks=pytest.mark.slow), "calibration"])
def test_the_images_measured_are_never_all_in_memory(tmp_path, job):
    """Images of 96 pixels take 110 kB each: 2,048 for triggers 226 MB, 1,000 for a calibration 110 MB, and more as
    they are drawn."""
    command = [sys.executable, "-c", MEASURED, job, str(tmp_path / "model.safetensors"), "96"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 80e6
