"""The small evaluation, run once and looked at by many tests."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import pytest

from hf_fingerprint.evaluation import Evaluation
from tests.helpers.evaluation_runs import run, save_model_and_images
from tests.helpers.quick_age import lock_quickly


def opening_quickly() -> AbstractContextManager[object]:
    """Throwaway vaults open in no time."""
    return patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """The same in every test here, and in no other."""
    with opening_quickly():
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A model and images."""
    return save_model_and_images(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def evaluation(place) -> Evaluation:
    """The small model's, in the folder `out`, with the scores of everybody."""
    with opening_quickly():
        return run(place, place / "out", all_scores=True)


@pytest.fixture(scope="session")
def redacted(place, evaluation) -> Evaluation:
    """The same as it is by default."""
    with opening_quickly():
        return run(place, place / "out")
