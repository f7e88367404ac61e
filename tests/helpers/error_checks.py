"""A check that an action fails with one kind of error, in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest

from hf_fingerprint.errors import FingerprintError


def refused(action: Callable[..., Any], *args: Any, error: type[FingerprintError] = FingerprintError) -> str:
    """Returns the error message of an action, one sentence; fails the test if there is no such error."""
    with pytest.raises(error) as caught:
        action(*args)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, f"not one line: {text!r}"
    assert text.endswith((".", "?")), f"not a sentence: {text!r}"
    return text
