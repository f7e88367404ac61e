"""What the first process makes reaches all; where it fails, all stop with one sentence."""

import os

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from hf_fingerprint.errors import FingerprintError, VaultError
from hf_fingerprint.training.processes import run_on_first_process


def test_one_process_calls_and_raises_as_usual():
    def fail():
        raise VaultError("No vault.")

    assert run_on_first_process(lambda: [1, 2]) == [1, 2]
    with pytest.raises(VaultError, match=r"^No vault\.$"):
        run_on_first_process(fail)


def test_two_processes_share_what_the_first_made_and_why_it_stopped(tmp_path):
    mp.start_processes(_both, args=(str(tmp_path),), nprocs=2, start_method="fork")

    for name, expected in {
        "value": ["{'key': b'made once'}"] * 2,
        "refusal": ["VaultError: No vault.", "FingerprintError: The first process stopped: No vault."],
        "crash": ["OSError: /secret/place", "FingerprintError: The first process stopped: OSError, see there."],
        "after": ["again"] * 2,
    }.items():
        assert [(tmp_path / f"{name}{rank}").read_text() for rank in (0, 1)] == expected
    assert (tmp_path / "calls").read_text() == "0"


def _both(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)

    def tell(name, text):
        with open(os.path.join(folder, f"{name}{rank}"), "w") as file:  # noqa: PTH118, PTH123
            file.write(text)

    def make():
        with open(os.path.join(folder, "calls"), "a") as file:  # noqa: PTH118, PTH123
            file.write(str(rank))
        return {"key": b"made once"}

    def fail(error):
        raise error

    tell("value", repr(run_on_first_process(make)))
    for name, error in (("refusal", VaultError("No vault.")), ("crash", OSError("/secret/place"))):
        try:
            run_on_first_process(lambda error=error: fail(error))
        except (FingerprintError, OSError) as caught:
            tell(name, f"{type(caught).__name__}: {caught}")
    tell("after", run_on_first_process(lambda: "again"))
    dist.destroy_process_group()
