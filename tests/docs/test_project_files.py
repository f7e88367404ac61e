"""Files for readers and for a release: version, changelog, citation, addresses, workflows, the long description."""

import datetime
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import hf_fingerprint


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"), ROOT / "CITATION.cff", ROOT / "Makefile"]


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert CITATION["version"] == hf_fingerprint.__version__
    assert re.findall(r"^## (\S+) - ", CHANGELOG, re.M)[0] == hf_fingerprint.__version__


def test_the_changelog_keeps_its_form():
    releases = re.findall(r"^## (.*)$", CHANGELOG, re.M)
    sections = re.findall(r"^### (.*)$", CHANGELOG, re.M)
    dates = [datetime.date.fromisoformat(release.split(" - ")[1]) for release in releases if release != "Unreleased"]

    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert dates == sorted(dates, reverse=True) and str(dates[0]) == CITATION["date-released"]


def test_the_citation_has_what_its_format_asks_for():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert {"message", "title", "authors"} <= CITATION.keys() and CITATION["license"] == PROJECT["license"]
    for each in CITATION["references"]:
        assert {"type", "title", "authors"} <= each.keys()
        assert all(author.keys() <= {"family-names", "given-names", "name"} for author in each["authors"])


def test_addresses_of_the_project_stand_in_one_place():
    hosts = {address.split("/")[2] for address in PROJECT["urls"].values()}

    assert all(address.startswith("https://") for address in PROJECT["urls"].values())
    assert not [path for path in TEXTS for address in PROJECT["urls"].values() if address in path.read_text()], hosts


@pytest.fixture
def build(monkeypatch):
    """The module with the hooks of the build, without hatchling, which only a build has."""
    for kind, name in (("metadata.plugin", "MetadataHookInterface"), ("builders.hooks.plugin", "BuildHookInterface")):
        monkeypatch.setitem(sys.modules, f"hatchling.{kind}.interface", SimpleNamespace(**{name: object}))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler")
def test_the_native_passes_are_compiled_unless_the_build_should_be_pure(build, tmp_path, monkeypatch):
    pytest.importorskip("setuptools")
    (tmp_path / "hf_fingerprint").mkdir()
    for name in ("_native.c", "_native_passes.h"):
        shutil.copy(ROOT / "hf_fingerprint" / name, tmp_path / "hf_fingerprint")

    library = build.compile_native(tmp_path)

    assert library == tmp_path / "hf_fingerprint" / "_native.abi3.so" and library.exists()
    (tmp_path / "hf_fingerprint" / "_native.c").write_text("no C")
    assert build.compile_native(tmp_path) is None and not library.exists()
    monkeypatch.setenv("HF_FINGERPRINT_PURE", "1")
    assert build.compile_native(tmp_path) is None


def test_the_long_description_has_addresses_for_files(build):
    text = "![Two](docs/two.png) [a](docs/a.md#b) [c](#here) [d](https://example.com/d)"

    assert build.with_addresses(text, "https://s") == (
        "![Two](https://s/raw/HEAD/docs/two.png) [a](https://s/blob/HEAD/docs/a.md#b) [c](#here)"
        " [d](https://example.com/d)"
    )


def test_workflows_have_no_findings():
    zizmor = Path(sys.executable).parent / "zizmor"
    arguments = [zizmor, "--offline", "--no-progress", "--persona=pedantic", ROOT / ".github"]

    found = subprocess.run(arguments, capture_output=True, text=True)

    assert found.returncode == 0, found.stdout


def test_the_published_version_is_checked_against_the_tag():
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]["build"]["steps"]
    check = next(step["run"] for step in steps if "TAG" in step.get("env", {}))
    script = check.replace("pyproject.toml", "/dev/null")  # placeholders are refused there, rightly

    def run(tag: str) -> int:
        command = ["bash", "-e", "-c", script]
        return subprocess.run(command, cwd=ROOT, env={"TAG": tag, "PATH": "/usr/bin:/bin"}).returncode

    assert run(f"v{hf_fingerprint.__version__}") == 0 and run("v0.0.1") != 0
