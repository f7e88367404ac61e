"""A base with a trigger set, which takes a while to build."""

import pytest

from hf_fingerprint import issue
from tests.helpers.trigger_models import base_with_triggers


@pytest.fixture(scope="session")
def issued(tmp_path_factory):
    """A base with a trigger set, its unlocked vault, and copies issued to eight recipients. Read only."""
    root = tmp_path_factory.mktemp("issued")
    folder, vault, base = base_with_triggers(root)
    copies = {name: issue(folder, name, vault, root / name).path for name in [f"recipient {i}" for i in range(8)]}
    return folder, vault, base, copies
