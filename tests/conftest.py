"""Shared by all tests: no network, no accelerator, nothing read from or written to this user's caches, and the same
keys on every run, so that a test whose figures depend on keys passes or fails for good."""

import gc
import os
import secrets
from collections.abc import Iterator
from hashlib import shake_256
from itertools import count

import pytest
from hypothesis import settings


os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_FINGERPRINT_PASSPHRASE", None)
os.environ.pop("HF_FINGERPRINT_VAULT", None)

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("quick")  # `--hypothesis-profile thorough` replaces it, as in `make test-slow`


def pytest_collection_finish():
    """Exempts all that was imported from garbage collection, which Trainers ask for several times a training: a second
    each with torch and transformers in memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def few_calibration_images():
    """Registration measures a marked model on 64 images, where no test says otherwise; in a child process on 1,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fingerprint.registration.measuring.DEFAULT_CALIBRATION_IMAGES", 64)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_passphrases():
    """Passphrases cost nothing where no test says otherwise; in a child process a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 2)
        yield


_PROCESS, _FROM_THE_SYSTEM = os.getpid(), secrets.token_bytes
_running: list[tuple[str, Iterator[int]]] = []  # tests and fixtures, innermost last, with their numbers of calls


def _token_bytes(nbytes: int | None = None) -> bytes:
    """Stands for `secrets.token_bytes`: a test or fixture gets bytes that depend on its name and on how many it took
    before, not on the tests that ran before it, here or in another worker. A child process gets the system's."""
    size = secrets.DEFAULT_ENTROPY if nbytes is None else nbytes
    if not _running or os.getpid() != _PROCESS:
        return _FROM_THE_SYSTEM(size)
    name, taken = _running[-1]
    return shake_256(f"{name}\0{next(taken)}".encode()).digest(size)


secrets.token_bytes = _token_bytes  # `token_hex` asks it too


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    _running.append((f"{request.node.nodeid}\0{fixturedef.argname}\0{getattr(request, 'param_index', 0)}", count()))
    try:
        return (yield)
    finally:
        _running.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    _running.append((item.nodeid, count()))
    try:
        return (yield)
    finally:
        _running.pop()
