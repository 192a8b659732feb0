"""The house itself: who may import whom, what the catalogues list, how long files and functions are."""

import ast
import importlib
import inspect
import statistics
from pathlib import Path

import pytest

import nxm_hf

ROOT = Path(nxm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the ground up; a file imports only from its own floor (its own folder) and from those below.
FLOORS = [
    {"version", "table", "catalogue", "checks", "solvers", "schedules", "families", "distillation"},
    {"patterns", "layers"},
    {"methods", "oneshot"},
    {"recipes"},
    {"words", "guide"},
    {"config", "state"},
    {"targets", "stamp", "directories", "optimizers", "refusals"},
    {"analysis", "metrics", "verification", "checkpoints", "bracket", "teachers", "identity", "comparison"},
    {"engine", "shipping", "inspection"},
    {"sampling", "loops", "permutation", "pruning", "rewinding"},
    {"callback"},
    {"trainer"},
    {"report"},
    {"__init__"},
    {"cli"},
]
CATALOGUES = ("analysis", "families", "methods", "oneshot", "patterns", "recipes", "solvers", "solvers.literature")
# In a catalogue's folder, but no entry of it: what its entries are made with.
WORKSHOP = {
    "analysis": {"usage", "work"},
    "families": {"blocks", "selection"},
    "oneshot": {"curvature", "descent", "refit"},
    "solvers": {"comparators", "fused", "paths", "tiles", "trials"},
    "solvers.literature": {"filling", "tilewise"},
}


def _imports(path: Path) -> set[str]:
    """The dotted names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_file_has_a_floor_and_every_floor_a_file():
    assert {_room(path) for path in FILES} == set().union(*FLOORS)


def test_imports_only_go_down():
    arrows = 0
    names = set(nxm_hf.__all__) - set().union(*FLOORS)  # what the package holds beside its files
    for path in FILES:
        here = _room(path)
        for module in _imports(path):
            there = module.split(".")[1] if module.startswith("nxm_hf.") else None
            if there is None or there == here or there in names:
                continue
            arrows += 1
            assert _floor(there) < _floor(here), f"{path.relative_to(ROOT)} imports {module}, which is not below it"
    assert arrows > 50


def test_only_two_files_know_the_trainer():
    words = ("Trainer", "TrainerCallback", "TrainerState", "TrainerControl", "TrainingArguments")
    knowing = {path.name for path in FILES if _imports(path) & {f"transformers.{word}" for word in words}}
    assert knowing == {"callback.py", "trainer.py"}


def test_methods_and_what_is_below_them_are_torch_alone():
    for path in FILES:
        if _floor(_room(path)) <= _floor("recipes") and path.name != "version.py":
            foreign = {module.split(".")[0] for module in _imports(path)} - {"nxm_hf", "torch"}
            assert not foreign & {"transformers", "accelerate", "huggingface_hub", "safetensors"}, path


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_file_stands_in_its_catalogue(name):
    folder, depth = ROOT.joinpath(*name.split(".")), name.count(".") + 2
    listed = {m.split(".")[depth] for m in _imports(folder / "__init__.py") if m.startswith(f"nxm_hf.{name}.")}
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"} - WORKSHOP.get(name, set())
    assert there <= listed, f"not in nxm_hf/{name}/__init__.py: {there - listed}"


def test_no_file_is_too_long_to_read_in_one_go():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 250}
    assert statistics.median(lengths.values()) <= 150


def test_functions_are_short():
    lengths = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node, clean=False)
                length = node.end_lineno - node.lineno - (len(docstring.splitlines()) if docstring else 0)
                lengths.append(length)
                assert length <= 45, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"
    assert len(lengths) > 100 and statistics.median(lengths) < 12


def test_every_file_says_what_it_is_and_every_public_name_too():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for module in (nxm_hf, *(importlib.import_module(f"nxm_hf.{name}") for name in CATALOGUES)):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name}"


def test_the_library_never_unpickles():
    for path in FILES:
        text = path.read_text()
        assert "torch.load(" not in text and "pickle" not in {m.split(".")[0] for m in _imports(path)}, path
