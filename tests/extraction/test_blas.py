import subprocess
import sys


def test_a_blas_that_is_loaded_late_is_limited_too_and_gets_its_threads_back():
    script = """
import sys
import numpy
from threadpoolctl import threadpool_info
from hf_fingerprint.extraction.blas import one_blas_thread, scipy_linalg

def threads():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

assert "scipy.linalg" not in sys.modules
before = threads()
with one_blas_thread():
    found = len(threads())
    scipy_linalg()
    assert len(threads()) > found and set(threads()) == {1}, threads()
after = threads()
assert len(after) > len(before) and set(after) == set(before) == {2}, (before, after)
"""
    environment = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_a_trace_of_a_verbatim_copy_imports_nothing_that_takes_long():
    """What scipy's linear algebra and optimization take to import is a fifth of a small model's trace."""
    script = """
import sys
import hf_fingerprint.tracing.trace
heavy = {"scipy.optimize", "scipy.linalg", "scipy.special", "scipy.stats", "torch", "timm", "transformers"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
