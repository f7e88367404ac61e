"""The small evaluation, run once and looked at by many tests."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from evaluation_runs import run, save_place
from quick_age import lock_quickly

from hf_fingerprint.evaluation import Evaluation


@pytest.fixture(autouse=True, scope="session")
def quick() -> Iterator[None]:
    """Throwaway vaults open in no time."""
    with patch("hf_fingerprint.vault.store.lock_identity", lock_quickly):
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A model and images."""
    return save_place(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def evaluation(place, quick) -> Evaluation:
    """The small model's, in the folder `out`."""
    return run(place, place / "out")
