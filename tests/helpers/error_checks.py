"""How a test expects something to be refused: by one kind of error, in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest

from hf_fingerprint.errors import FingerprintError


def refused(action: Callable[..., Any], *args: Any, error: type[FingerprintError] = FingerprintError) -> str:
    """The one line with which an action is refused; anything but that error fails the test."""
    with pytest.raises(error) as caught:
        action(*args)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, f"not one line: {text!r}"
    assert text.endswith((".", "?")), f"not a sentence: {text!r}"
    return text
