import os
import platform
import subprocess
import sys

import pytest


COUNTING = """
import resource, sys
import numpy as np
from hf_fingerprint.cli.kept_memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(1 << 23, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
print(new_pages(), new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the setting")
@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_is_freed_serves_again_without_new_pages(kept):
    command = [sys.executable, "-c", COUNTING, "kept" if kept else "returned"]
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}

    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    first, again = map(int, found.split())

    assert first > 10_000  # of 4 kB, for 64 MB
    assert again < 100 if kept else again > 10_000
