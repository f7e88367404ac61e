"""The lowest versions that `make test-versions` tries are the ones that pyproject.toml promises."""

import re
import tomllib
from pathlib import Path

import pytest


TOP = Path(__file__).parent.parent
LOWEST = dict(
    line.split("==") for line in (TOP / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")
)
TESTED = ("models", "plot", "blackbox", "datasets", "demo")


def promised() -> list[str]:
    """All that is asked for with a bound."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    found = [*project["dependencies"], *(each for name in TESTED for each in project["optional-dependencies"][name])]
    return [each for each in found if ">=" in each]


@pytest.mark.parametrize("requirement", promised())
def test_each_lower_bound_is_tried(requirement):
    name, bound = re.fullmatch(r"([\w.-]+)>=([\d.]+)(?:,.*)?", requirement).groups()
    tried = LOWEST[name].split(".")

    assert tried[: bound.count(".") + 1] == bound.split(".") and not any(map(int, tried[bound.count(".") + 1 :]))


def test_nothing_else_is_held_back():
    assert LOWEST.keys() == {each.partition(">=")[0] for each in promised()}
