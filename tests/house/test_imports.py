"""The architecture: rooms, the arrows between them, and what may be imported where.

A room is a folder of `nxm_hf`, or a file at its root. Its floor is read off the imports: a room stands one floor above
the highest room that it imports. There is no table to keep; there must be no circle.
"""

import ast
import importlib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nxm_hf

ROOT = Path(nxm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# In a catalogue's folder, but not an entry of it: what its entries are built from.
PARTS = {
    "analysis": {"density_schedule", "forward_flops", "recording"},
    "methods": {"rho"},
    "pruners": {"adam_fit", "hessian", "least_squares"},
    "solvers": {
        "block_sums",
        "changed_entries",
        "comparator_network",
        "entry_counts",
        "equal_words",
        "kept_entries",
        "masked_adamw",
        "masked_ops",
        "nearest",
        "self_test",
        "transposable_paths",
        "transposable_tiles",
        "weight_ops",
    },
    "solvers.published": {"filling", "tilewise"},
}
CATALOGUES = ("analysis", "families", "methods", "patterns", "pruners", "recipes", "solvers", "solvers.published")
# Rooms that users import by name. They stand beside each other; none may be imported by what it imports.
ENTRANCES = {"cli": {"__main__"}, "trainer": {"__init__"}, "report": {"cli"}}
TORCH_ONLY = {"solvers", "patterns", "methods", "pruners", "families", "recipes", "settings", "text"}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, in statements or by `import_module` and `__import__`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            found.add(node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else "<dynamic>")
    return found


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def room_of(module: str) -> str | None:
    """Return the room that a dotted name of ours is in, or None for other packages."""
    if module == "nxm_hf":
        return "__init__"
    if not module.startswith("nxm_hf."):
        return None
    first = module.split(".")[1]
    return first if (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file() else "__init__"


def rooms() -> dict[str, set[str]]:
    """Return each room with the rooms that it imports."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = path.relative_to(ROOT).parts[0].removesuffix(".py")
        there = {room_of(module) for module in imports_of(path)} - {None, here}
        if path != ROOT / "__init__.py":
            there.discard("__init__")  # `from nxm_hf import recipes` names a room, which is counted by itself
        graph.setdefault(here, set()).update(there)
    return graph


def modules() -> dict[str, set[str]]:
    """Return each module with the modules of ours that it imports."""
    names = {".".join(("nxm_hf", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    return {name: {found for found in imports_of(path) if found in names} - {name} for name, path in names.items()}


def test_there_is_no_circle_of_rooms():
    order = list(TopologicalSorter(rooms()).static_order())  # CycleError names the circle
    assert len(order) > 15 and order.index("solvers") < order.index("patterns") < order.index("methods")
    assert order.index("config") < order.index("layers") < order.index("engine") < order.index("trainer")


def test_there_is_no_circle_of_files():
    graph = modules()
    for name, found in graph.items():  # a package's __init__ imports its files; they may import each other beside it
        found -= {parent for parent in found if name.startswith(f"{parent}.")}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph) > 100


def test_the_root_of_the_package_holds_at_most_six_files():
    assert len(list(ROOT.glob("*.py"))) <= 6


def test_nothing_but_the_public_names_is_imported_by_a_string():
    """`nxm_hf/__init__.py` imports names when they are used; this test reads them in its block for type checkers."""
    dynamic = {path for path in FILES if "<dynamic>" in imports_of(path)}
    assert dynamic == {ROOT / "__init__.py"}, f"{dynamic} import by a computed name"


def test_only_the_folder_trainer_imports_the_trainer_of_transformers():
    """Beside the demo, which uses it as a user does."""
    words = ("Trainer", "TrainerCallback", "TrainerState", "TrainerControl", "TrainingArguments")
    knowing = {
        path.relative_to(ROOT).parts[0]
        for path in FILES
        if imports_of(path) & {f"transformers.{word}" for word in words}
    }
    assert knowing == {"trainer", "demo"}


def test_nothing_but_the_public_names_imports_the_trainer_and_nothing_imports_the_command_line():
    graph = rooms()
    for room, allowed in ENTRANCES.items():
        importing = {name for name, found in graph.items() if room in found}
        assert importing <= allowed, f"{room} is imported by {importing - allowed}"


def test_recipes_and_what_is_below_them_need_torch_alone():
    for path in FILES:
        if path.relative_to(ROOT).parts[0].removesuffix(".py") in TORCH_ONLY:
            foreign = {module.split(".")[0] for module in imports_of(path)}
            assert not foreign & {"transformers", "accelerate", "huggingface_hub", "safetensors"}, path


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_file_is_listed_in_its_catalogue(name):
    folder, depth = ROOT.joinpath(*name.split(".")), name.count(".") + 2
    listed = {m.split(".")[depth] for m in imports_of(folder / "__init__.py") if m.startswith(f"nxm_hf.{name}.")}
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"} - PARTS.get(name, set())
    assert there <= listed, f"not in nxm_hf/{name}/__init__.py: {there - listed}"


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_public_name_of_a_catalogue_can_be_imported(name):
    module = importlib.import_module(f"nxm_hf.{name}")
    assert all(hasattr(module, public) for public in module.__all__)


def test_the_library_never_unpickles():
    for path in FILES:
        assert "torch.load(" not in path.read_text()
        assert "pickle" not in {module.split(".")[0] for module in imports_of(path)}, path
