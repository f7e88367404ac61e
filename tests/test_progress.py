import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_fingerprint
from hf_fingerprint import progress
from hf_fingerprint.progress import counting, part_of, show_progress, shows_progress, silent
from tests.helpers.screens import show_bars


def test_what_is_counted_adds_up():
    steps = []
    count = counting(lambda *step: steps.append(step), "hashing", 10, done=1)
    count(4)
    count(5)
    assert steps == [("hashing", 5, 10), ("hashing", 10, 10)]


def test_parts_count_for_the_whole_step():
    steps = []
    for before in (0, 3):
        part_of(lambda *step: steps.append(step), "scoring", 6, before)("generating codewords", 3, 3)
    assert steps == [("scoring", 3, 6), ("scoring", 6, 6)]


def test_no_progress_is_progress_too():
    counting(None, "hashing", None)(1)
    silent("hashing", 1, None)
    assert part_of(None, "hashing", 1) is None


@shows_progress
def work(steps, progress=None):
    for i in range(steps):
        progress("working", i + 1, steps)
    return progress


@shows_progress
def yielding(steps, *, progress=None):
    for i in range(steps):
        progress("working", i + 1, steps)
        yield i


def test_a_call_without_progress_shows_bars_on_a_terminal(monkeypatch):
    screen = show_bars(monkeypatch)
    work(2)
    assert "working:   0%|" in screen.getvalue() and screen.getvalue().endswith("\r")  # the bar is gone
    screen.truncate(0)

    assert list(yielding(2)) == [0, 1]
    assert "working:" in screen.getvalue()


def test_a_generator_ends_its_work_however_the_caller_stops():
    ended = []

    @shows_progress
    def work_on(*, progress=None):
        try:
            yield 1
        finally:
            ended.append(True)

    items = work_on()
    next(items)
    with pytest.raises(KeyError) as kept:  # its traceback keeps the frames alive
        items.throw(KeyError)
    assert ended == [True] and kept


@pytest.mark.parametrize(
    ("name", "value"), [("HF_HUB_DISABLE_PROGRESS_BARS", "1"), ("TERM", "dumb"), ("verbosity", "error")]
)
def test_settings_against_bars_are_heeded(monkeypatch, name, value):
    screen = show_bars(monkeypatch)
    if name == "verbosity":
        monkeypatch.setattr(logging.getLogger("hf_fingerprint"), "level", logging.ERROR)
        logging.getLogger("hf_fingerprint").manager._clear_cache()
    else:
        monkeypatch.setenv(name, value)
    work(2)
    list(yielding(2))
    logging.getLogger("hf_fingerprint").manager._clear_cache()

    assert screen.getvalue() == ""


def test_bars_that_are_disabled_in_huggingface_hub_are_not_shown(monkeypatch):
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    screen = show_bars(monkeypatch)
    disable_progress_bars()
    try:
        work(2)
    finally:
        enable_progress_bars()

    assert screen.getvalue() == ""


def test_where_no_terminal_is_steps_are_logged(caplog, capsys):
    caplog.set_level(logging.INFO, "hf_fingerprint")
    with show_progress() as progress:
        progress("hashing\x1b", 0, None)
        progress("working", 1, 2)
        progress("working", 2, 2)

    assert caplog.messages == ["hashing\\x1b", "working", "working: done"]
    assert capsys.readouterr().err == ""


def test_lines_say_how_much_time_is_left(monkeypatch):
    lines, now = [], [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    log = progress.log_progress(lines.append)
    for at, done in ((0, 4), (3, 4), (20, 5), (25, 6), (49, 7), (50, 8), (51, 20)):
        now[0] = at
        log("trials", done, 20)
    assert lines == ["trials", "trials: 25%, about 5 min left", "trials: 40%, about 2 min left", "trials: done"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (7380, "2 h 3 min")]
)
def test_durations_are_short(seconds, shown):
    assert progress.format_duration(seconds) == shown


def test_a_given_progress_is_the_one_that_is_called():
    steps = []

    def keep(*step):
        steps.append(step)

    assert work(1, keep) is work(1, progress=keep) is keep
    assert list(yielding(1, progress=keep)) == [0]
    assert steps == [("working", 1, 1)] * 3
    assert work(1, silent) is silent


def test_a_wrong_call_names_the_function():
    with pytest.raises(TypeError, match=r"work\(\) missing"):
        work()


@pytest.mark.parametrize(
    ("level", "shown"), [("info", "hashing"), ("error", ""), ("loud", "HF_FINGERPRINT_VERBOSITY")]
)
def test_the_verbosity_of_the_environment_holds(level, shown):
    code = "from hf_fingerprint.progress import show_progress\nwith show_progress() as p: p('hashing', 0, None)"
    environment = os.environ | {
        "HF_FINGERPRINT_VERBOSITY": level,
        "PYTHONPATH": str(Path(hf_fingerprint.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stderr.startswith(shown) and bool(done.stderr) == bool(shown)
    assert done.stdout == ""
