"""A base with questions, which takes a while to make."""

import pytest

from hf_fingerprint import issue
from tests.helpers.trigger_models import base_with_triggers


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """A base with questions, its unlocked vault, and copies issued to eight recipients. Not to be added to."""
    root = tmp_path_factory.mktemp("asked")
    folder, vault, base = base_with_triggers(root)
    copies = {name: issue(folder, name, vault, root / name).path for name in [f"recipient {i}" for i in range(8)]}
    return folder, vault, base, copies
