"""The public names: what `dir()` lists, when they load, and what a missing extra means."""

import json
import os
import rlcompleter
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

import hf_fingerprint
from hf_fingerprint import attacks, errors, extras, privacy, training


PROMISED = {
    *("FingerprintConfig", "PublishConfig", "Vault", "Issuer", "register", "issue", "trace"),
    *("trace_all", "verify", "query", "SuspectResult"),
    *("make_trigger_set", "push_to_hub", "watch", "evaluate", "check_proof"),
    *("Fingerprint", "FingerprintCallback", "FingerprintTrainer", "FingerprintTrainerMixin", "FingerprintedModel"),
    *("FingerprintTask", "FingerprintCriterion", "DeepMarksLoss"),
    *("IssuedCopy", "PublishedCopy", "TraceResult", "RecipientScore", "QueryResult", "WatchResult", "ProofCheck"),
    *("Evaluation", "Outcome"),
}
TRAINING = {"Fingerprint", "DeepMarksLoss"}
TIMM = {"FingerprintedModel", "FingerprintTask", "FingerprintCriterion"}
TRANSFORMERS = {"FingerprintCallback", "FingerprintTrainer", "FingerprintTrainerMixin"}


def run(code: str, *search_path: Path) -> str:
    """What a fresh process prints that runs some code, with the libraries of this one or of a search path alone."""
    package = Path(hf_fingerprint.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (package, *search_path)))}
    command = [sys.executable, *["-S"] * bool(search_path), "-c", f"import json, sys, hf_fingerprint\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def libraries_but(without: tuple[str, ...], folder: Path) -> Path:
    """A folder with the installed libraries, but for some."""
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.partition("-")[0] not in without:
            (folder / entry.name).symlink_to(entry)
    return folder


def test_dir_lists_the_public_names_and_nothing_private():
    listed = dir(hf_fingerprint)
    of_errors = {name for name, kind in vars(errors).items() if isinstance(kind, type) and not name.startswith("_")}

    assert set(listed) == {*PROMISED, *of_errors}
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("package", [hf_fingerprint, attacks, privacy, training], ids=lambda each: each.__name__)
def test_names_are_what_they_say(package):
    for name in dir(package):
        assert getattr(getattr(package, name), "__name__", name) == name
    assert package.__all__ == dir(package)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        package.nothing_of_the_kind


def test_the_import_loads_no_heavy_library():
    loaded = set(json.loads(run("print(json.dumps(list(sys.modules)))")))

    assert "hf_fingerprint" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "rich", "typer", "huggingface_hub", "safetensors", "cryptography"}


def test_everything_can_be_imported_at_once_and_completed():
    names: dict[str, object] = {}
    exec("from hf_fingerprint import *\nimport hf_fingerprint", names)
    completed = rlcompleter.Completer(names).attr_matches("hf_fingerprint.Fingerprint")

    assert set(dir(hf_fingerprint)) <= names.keys()
    assert "hf_fingerprint.FingerprintConfig(" in completed and "hf_fingerprint.FingerprintTask(" in completed


@pytest.mark.integration
def test_without_the_models_extra_its_names_are_left_out_and_say_what_to_install(tmp_path):
    names = TRAINING | TIMM | TRANSFORMERS
    code = f"""
from hf_fingerprint import *
import rlcompleter
rlcompleter.Completer(globals()).attr_matches("hf_fingerprint.F")
said = []
for name in {sorted(names)}:
    try:
        exec(f"from hf_fingerprint import {{name}}")
    except hf_fingerprint.FingerprintError as error:
        said.append([str(error), isinstance(error, ImportError)])
print(json.dumps([dir(hf_fingerprint), said]))
"""
    libraries = libraries_but(("torch", "timm", "transformers"), tmp_path / "libraries")
    listed, said = json.loads(run(code, libraries))

    assert set(dir(hf_fingerprint)) - set(listed) == names
    assert len(said) == len(names)
    for sentence, is_import_error in said:
        assert is_import_error
        assert sentence.endswith("pip install 'hf-fingerprint[models]'.") and len(sentence.splitlines()) == 1


@pytest.mark.parametrize(("library", "names"), [("timm", TIMM), ("transformers", TRANSFORMERS)])
def test_without_one_library_its_names_are_left_out_and_say_what_to_install(monkeypatch, library, names):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == library else find_spec(name))
    for module in ("timm", "trainer"):
        monkeypatch.delitem(sys.modules, f"hf_fingerprint.training.{module}", raising=False)
    for module in (library, "timm.task"):
        monkeypatch.setitem(sys.modules, module, None)
    get_attribute, available = extras.attach("hf_fingerprint", hf_fingerprint.__file__, hf_fingerprint._LIBRARIES)

    assert set(dir(hf_fingerprint)) == set(available()) == set(get_attribute("__all__"))
    assert not names & set(available()) and set(available()) >= TRAINING
    with pytest.raises(errors.MissingExtraError, match=rf"needs {library}: pip install 'hf-fingerprint\[models\]'\.$"):
        get_attribute(min(names))


def test_a_library_that_no_extra_brings_is_no_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hf_fingerprint.hub", None)
    get_attribute, _ = extras.attach("hf_fingerprint", hf_fingerprint.__file__)

    with pytest.raises(ModuleNotFoundError, match=r"hf_fingerprint\.hub"):
        get_attribute("watch")
