"""A terminal for tests."""

import importlib
import io
import sys

import pytest


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show_bars(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Makes stderr a terminal on which progress bars are wanted, which `conftest.py` turns off."""
    screen, module = Screen(), importlib.import_module("huggingface_hub.utils.tqdm")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(module, "progress_bar_states", {})
    monkeypatch.setattr(sys, "stderr", screen)
    return screen
