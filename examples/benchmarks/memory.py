"""Runs one job and prints its peak memory above the imports, in MB.

python -m examples.benchmarks.memory issue|unlock|trace|score ...
"""

import os
import sys
import time
from pathlib import Path

from hf_fingerprint import issuing, tracing
from hf_fingerprint.codes import FairSigns, Tardos, decode
from hf_fingerprint.vault import Vault
from hf_fingerprint.vault.key_table import KeyTable


def resident() -> float:
    """Returns the memory in use now, in MB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    """Returns the peak memory of this program, in MB (not `ru_maxrss`, which includes the parent's memory)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def reset_peak() -> None:
    """Resets the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Runs the job named on the command line and prints `peak seconds`."""
    job, *arguments = sys.argv[1:]
    if job == "score":
        import numpy as np

        family, count, length = arguments[0], int(arguments[1]), int(arguments[2])
        secret = os.urandom(32)
        codebook = FairSigns(length) if family == "fair_signs" else Tardos(length, 20, secret)
        keys = KeyTable(os.urandom(32 * count))
        colluders = [int(i) for i in np.linspace(0, count - 1, 5)]
        noise = np.random.default_rng(0).standard_normal(length)
        extracted = np.mean([codebook.codeword(keys[i]) for i in colluders], axis=0) + 0.5 * noise
        before, started = resident(), time.perf_counter()
        found = decode(codebook, keys, extracted, np.ones(length))
        assert sorted(found.accused) == colluders, found.accused
    else:
        vault = Vault(arguments[1])
        before, started = resident(), time.perf_counter()
        if job != "issue":
            vault.unlock(os.environ["HF_FINGERPRINT_PASSPHRASE"])
        if job == "unlock":
            print(f"{peak() - before:.0f} {time.perf_counter() - started:.1f}")
            return
        reset_peak()
        before, started = resident(), time.perf_counter()
        if job == "trace":
            tracing.trace(arguments[0], vault)
        else:
            issuing.issue(arguments[0], "memory", vault, arguments[2])
    print(f"{peak() - before:.0f} {time.perf_counter() - started:.1f}")


if __name__ == "__main__":
    main()
