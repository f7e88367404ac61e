"""The floors of the design: each module imports from its own package and from floors under it, and nothing heavy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hf_fingerprint


ROOT = Path(hf_fingerprint.__file__).parent
FLOORS = {
    "printable": -1,  # errors are made of it
    "progress": -1,
    "errors": 0,
    "keys": 0,
    "outcomes": 0,
    "codes": 1,
    "config": 2,
    "checkpoints": 2,
    "carriers": 3,
    "vault": 3,
    "models": 3,
    "registration": 4,
    "extraction": 4,
    "blackbox": 5,
    "issuing": 6,
    "tracing": 6,
    "training": 6,
    "privacy": 6,
    "hub": 7,
    "attacks": 7,
    "evaluation": 8,
    "cli": 9,
}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "PIL",
    "matplotlib",
    "sklearn",
    "skimage",
    "diffusers",
}
TORCH = {"training", "privacy"}  # rooms whose modules are loaded when a name of theirs is first asked for
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


LOADERS = {
    "create_model": {"models/timm_models.py"},
    "from_pretrained": {"models/transformers_models.py"},
    "pipeline": set(),
    "load_dataset": set(),
    "load_dataset_builder": {"evaluation/data.py"},
    "load": set(),  # of torch and pickle: what a pickle says is described, and never done
    "Unpickler": set(),
}


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(path: str, run_at_import: bool = False) -> list[tuple[int, str]]:
    """All modules named in import statements, with their lines; `run_at_import` leaves out functions' bodies."""
    found = []

    def visit(node: ast.AST) -> None:
        if run_at_import and (isinstance(node, ast.FunctionDef | ast.Lambda) or is_type_checking(node)):
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "hf_fingerprint":
                found.extend((node.lineno, f"hf_fingerprint.{alias.name}") for alias in node.names)
            else:
                found.append((node.lineno, node.module))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((ROOT / path).read_text()))
    return found


def own_imports(path: str) -> list[tuple[int, str]]:
    return [(line, name.split(".")[1]) for line, name in imports_of(path) if name.startswith("hf_fingerprint.")]


def test_every_module_is_on_a_floor():
    assert {room_of(path) for path in MODULES} - {"__init__"} <= FLOORS.keys()
    assert {"errors", "keys", "codes", "carriers", "vault", "issuing", "tracing", "cli"} <= {
        room_of(p) for p in MODULES
    }


@pytest.mark.parametrize("path", [path for path in MODULES if path != "__init__.py"])
def test_a_module_imports_from_its_own_package_and_lower_floors_alone(path):
    room = room_of(path)

    for line, other in own_imports(path):
        if other != room and other != "__version__":
            assert FLOORS[other] < FLOORS[room], f"{path}:{line} of floor {FLOORS[room]} imports {other}"


@pytest.mark.parametrize(
    ("one", "other"), [("carriers", "vault"), ("registration", "extraction"), ("issuing", "tracing")]
)
def test_rooms_of_one_floor_do_not_know_each_other(one, other):
    for path in MODULES:
        if room_of(path) in {one, other}:
            strangers = {name for _, name in own_imports(path)} & ({one, other} - {room_of(path)})
            assert not strangers, f"{path} imports {strangers}"


def test_some_imports_are_seen():
    seen = {(room_of(path), other) for path in MODULES for _, other in own_imports(path)}

    assert {("issuing", "registration"), ("tracing", "extraction"), ("carriers", "keys"), ("cli", "issuing")} <= seen


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) not in TORCH or "__init__" in path])
def test_nothing_heavy_is_imported_before_it_is_needed(path):
    for line, name in imports_of(path, run_at_import=True):
        assert name.split(".")[0] not in HEAVY, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("room", ["codes", "keys", "errors", "printable"])
def test_codes_know_no_model(room):
    allowed = set(sys.stdlib_module_names) | {"numpy", "scipy", "cryptography", "hf_fingerprint"}
    paths = [path for path in MODULES if room_of(path) == room]

    assert paths
    for path in paths:
        for line, name in imports_of(path):
            assert name.split(".")[0] in allowed, f"{path}:{line} imports {name}"
        assert {other for _, other in own_imports(path)} <= {"codes", "keys", "errors", "printable", "progress"}


def modules_after(statement: str) -> set[str]:
    """The top-level packages in memory once a fresh process has run a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["codes", "carriers", "blackbox", "issuing", "tracing", "training", "privacy", "cli.main"]
)
def test_importing_a_module_loads_nothing_heavy(module):
    loaded = modules_after(f"import hf_fingerprint.{module}")

    assert "hf_fingerprint" in loaded
    assert not loaded & HEAVY
    if module == "codes":
        assert not loaded & {"safetensors", "huggingface_hub", "pyrage", "typer", "rich", "filelock"}


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import hf_fingerprint")

    assert not loaded & (HEAVY | {"numpy", "scipy", "cryptography", "safetensors", "huggingface_hub", "typer"})


def test_the_packages_names_are_what_they_say():
    for name in hf_fingerprint.__all__:
        assert getattr(hf_fingerprint, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        hf_fingerprint.nothing_of_the_kind


@pytest.mark.parametrize("path", MODULES)
def test_models_data_sets_and_pickles_are_loaded_in_one_place_each(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        called = getattr(node, "func", None) if isinstance(node, ast.Call) else None
        owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        if name not in LOADERS or (name == "load" and owner not in ("torch", "pickle")):
            continue
        assert path in LOADERS[name], f"{path}:{node.lineno} calls {name}"


PRINTS = {"print", "showwarning", "Console", "Status", "Live", "StreamHandler"}


@pytest.mark.parametrize("path", sorted(set(MODULES) - {"cli/terminal.py"}))
def test_everything_is_printed_in_one_place(path):
    """Others call `echo` and `echo_err` of `cli/terminal.py`, and print tables to its console, named `screen`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = {getattr(node, "attr", ""), getattr(node, "id", "")} & (PRINTS | {"stdout", "stderr"})
        owner = getattr(getattr(node, "value", None), "id", None) if isinstance(node, ast.Attribute) else None
        names = set() if owner == "screen" and names == {"print"} else names
        names |= {getattr(node, "attr", "")} & {"echo", "secho"} if owner in ("typer", "click") else set()
        assert not names, f"{path}:{node.lineno} prints by {names.pop()}"
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("rich", "typer", "click")):
            assert not {alias.name for alias in node.names} & {*PRINTS, "Progress", "echo", "secho"}, (
                f"{path}:{node.lineno}"
            )


@pytest.mark.parametrize("path", MODULES)
def test_no_module_has_pythons_unpickler(path):
    assert not {name.split(".")[0] for _, name in imports_of(path)} & {"pickle", "_pickle", "dill", "cloudpickle"}
