"""The layers of the design: a module imports from its own package and from layers under it, and nothing heavy."""

import ast
import json
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_fingerprint


ROOT = Path(hf_fingerprint.__file__).parent
LAYERS = {
    "choices": -1,
    "printable": -2,  # error messages are escaped by it
    "tables": -1,
    "progress": -1,
    "retrying": -1,
    "errors": 0,
    "extras": 1,
    "keys": 0,
    "launcher": -2,
    "native": -1,
    "_native": -2,  # compiled
    "threads": -1,
    "logits": 0,
    "outcomes": 0,
    "codes": 1,
    "config": 3,
    "config_files": 2.5,
    "checkpoints": 2,
    "carriers": 3,
    "vault": 3,
    "sharing": 3.5,
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
    "__main__": 10,
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
TORCH = {"training", "privacy"}  # their modules are imported when a name of theirs is first used
LOADERS = {
    "create_model": {"models/timm_models.py"},
    "from_pretrained": {"models/transformers_models.py", "cli/options.py"},  # and a configuration of ours
    "pipeline": set(),
    "load_dataset": set(),
    "load_dataset_builder": {"evaluation/data.py"},
    "load": set(),  # of torch and pickle: pickles are described and never loaded
    "Unpickler": set(),
}
PRINTS = {"print", "showwarning", "echo", "secho", "Console", "Progress", "Status", "Live", "StreamHandler"}
PRINTS |= {"stdout", "stderr"}
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def package_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
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
            found.append((node.lineno, node.module))
            found.extend((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree_of(path))
    return found


def own_imports(path: str) -> list[tuple[int, str]]:
    """Packages and top-level modules of this project that a module imports from, with their lines."""
    names = [(line, name.split(".")) for line, name in imports_of(path)]
    return [(line, name[1]) for line, name in names if name[0] == "hf_fingerprint" and name[1:]]


def test_every_module_has_a_layer():
    assert {package_of(path) for path in MODULES} - {"__init__"} <= LAYERS.keys()
    assert {"errors", "keys", "codes", "carriers", "vault", "issuing", "tracing", "cli"} <= {
        package_of(path) for path in MODULES
    }


def test_a_module_imports_from_its_own_package_and_lower_layers_alone():
    upward = [
        f"{path}:{line} of layer {LAYERS[package_of(path)]} imports {other}"
        for path in MODULES
        if path != "__init__.py"
        for line, other in own_imports(path)
        if other not in (package_of(path), "__version__") and LAYERS[other] >= LAYERS[package_of(path)]
    ]

    assert not upward


def test_some_imports_are_seen():
    seen = {(package_of(path), other) for path in MODULES for _, other in own_imports(path)}

    assert {("issuing", "registration"), ("tracing", "extraction"), ("carriers", "keys"), ("cli", "issuing")} <= seen


def test_no_modules_import_one_another_in_a_circle():
    def module(path: str) -> str:
        return f"hf_fingerprint.{path.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")

    paths = {module(path): path for path in MODULES}
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in paths.items():
        wanted = [imported for _, imported in imports_of(path, run_at_import=True) if imported in paths]
        graph[name] = {each for each in wanted if each != name}
    # `from package import module` names the package too, which the module's own `__init__` may import in turn
    for name, needed in graph.items():
        graph[name] = {each for each in needed if not any(other.startswith(f"{each}.") for other in needed)}

    assert sum(map(len, graph.values())) > len(MODULES)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("root", [ROOT, ROOT.parent / "tests"], ids=["package", "tests"])
def test_no_two_files_have_one_name(root):
    names = Counter(path.name for path in root.rglob("*.py"))
    duplicates = {name for name, count in names.items() if count > 1} - {"__init__.py", "conftest.py"}

    assert not duplicates


def test_no_two_public_functions_or_classes_have_one_name():
    """Functions in `cli/` have the names of their commands."""
    named = Counter(
        node.name
        for path in MODULES
        if package_of(path) != "cli"
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if "overload" not in {getattr(decorator, "id", None) for decorator in node.decorator_list}
    )

    assert not [name for name, count in named.items() if count > 1]


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = [
        f"{path}:{line} imports {name}"
        for path in MODULES
        if package_of(path) not in TORCH or "__init__" in path
        for line, name in imports_of(path, run_at_import=True)
        if name.split(".")[0] in HEAVY
    ]

    assert not heavy


@pytest.mark.parametrize("package", ["codes", "keys", "errors", "printable"])
def test_codes_know_no_model(package):
    allowed = set(sys.stdlib_module_names) | {"numpy", "scipy", "cryptography", "hf_fingerprint"}
    paths = [path for path in MODULES if package_of(path) == package]

    assert paths
    for path in paths:
        for line, name in imports_of(path):
            assert name.split(".")[0] in allowed, f"{path}:{line} imports {name}"
        allowed_here = {"codes", "keys", "choices", "errors", "native", "printable", "progress", "tables", "threads"}
        assert {other for _, other in own_imports(path)} <= allowed_here


def modules_after(statement: str) -> set[str]:
    """The top-level packages in memory once a fresh process has run a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_packages_loads_nothing_heavy():
    names = ["carriers", "blackbox", "issuing", "tracing", "training", "privacy", "cli.main"]
    loaded = modules_after("\n".join(f"import hf_fingerprint.{name}" for name in names))

    assert {"hf_fingerprint", "typer"} <= loaded
    assert not loaded & HEAVY


def test_importing_codes_loads_numpy_and_little_else():
    loaded = modules_after("import hf_fingerprint.codes")

    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"safetensors", "huggingface_hub", "pyrage", "typer", "rich", "filelock"})


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import hf_fingerprint")

    assert not loaded & (HEAVY | {"numpy", "scipy", "cryptography", "safetensors", "huggingface_hub", "typer"})


def test_models_data_sets_and_pickles_are_loaded_in_one_place_each():
    calls = [(path, node) for path in MODULES for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    found = []
    for path, call in calls:
        called = call.func
        owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
        if name in LOADERS and (name != "load" or owner in ("torch", "pickle")):
            found.append((path, name, call.lineno))

    assert {path for path, _, _ in found} == set().union(*LOADERS.values())
    assert not [f"{path}:{line} calls {name}" for path, name, line in found if path not in LOADERS[name]]


def test_everything_is_printed_in_one_place():
    """Others call `echo` and `echo_err` of `cli/terminal.py`, and print tables to its console, named `screen`.
    `tables.py` prints to text."""
    found = []
    for path in sorted(set(MODULES) - {"cli/terminal.py", "progress.py", "tables.py"}):
        nodes = list(ast.walk(tree_of(path)))
        from_here = [n for n in nodes if isinstance(n, ast.ImportFrom) and str(n.module).startswith("hf_fingerprint")]
        ours = {alias.name for node in from_here for alias in node.names} | {"screen"}
        for node in nodes:
            names = set()
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) not in ours:
                names = {node.attr}
            elif isinstance(node, ast.Name):
                names = {node.id} - ours - {"echo"}  # `click` and `typer` have one of this name, and is not ours
            elif isinstance(node, ast.ImportFrom) and node not in from_here:
                names = {alias.name for alias in node.names}
            found += [f"{path}:{node.lineno} prints by {name}" for name in names & PRINTS]

    assert not found


def test_no_module_has_pythons_unpickler():
    unpicklers = {"pickle", "_pickle", "dill", "cloudpickle"}

    assert not [
        f"{path}:{line}" for path in MODULES for line, name in imports_of(path) if name.split(".")[0] in unpicklers
    ]
