"""This process among those that `accelerate launch`, `torchrun` or `mpirun` started, by the environment they set."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def process_count() -> int:
    """The number of processes that were launched together; 1 without a launcher."""
    return max(1, _read_first(_SIZES, 1))


def is_first_launched() -> bool:
    """Whether this process is the first of those that were launched together, or the only one."""
    return process_count() == 1 or _read_first(_RANKS, 0) == 0


def own_device(device: str) -> str:
    """The device of this process: `cuda` is the one with its number, if several processes were launched on a machine.
    Any other device is returned unchanged."""
    several = process_count() > 1 and device in ("cuda", "xpu", "npu", "mlu")
    return f"{device}:{_read_first(_LOCAL_RANKS, 0)}" if several else device


def launch_id() -> str:
    """The same for all processes that one launcher started on this machine; without a launcher a new one."""
    if process_count() == 1:
        return secrets.token_hex(8)
    launcher, started = os.getppid(), ""
    with suppress(OSError, IndexError):  # a restarted container has the same number again
        started = Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{os.uname().nodename} {launcher} {started}"


def _read_first(names: tuple[str, ...], default: int) -> int:
    """The first variable of the environment that holds a number."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)
