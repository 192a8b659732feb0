"""The size of files and functions, and what docstrings must say."""

import ast
import importlib
import inspect
import statistics
from pathlib import Path

import nxm_hf

ROOT = Path(nxm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = ("", ".analysis", ".methods", ".patterns", ".pruners", ".recipes", ".solvers")


def functions(path: Path) -> list[ast.FunctionDef]:
    """Return every function of a file, methods and inner ones too."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_files_are_short_enough_to_read_in_one_go():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_functions_are_short():
    lengths = []
    for path in FILES:
        for node in functions(path):
            docstring = ast.get_docstring(node, clean=False)
            lengths.append(node.end_lineno - node.lineno - (len(docstring.splitlines()) if docstring else 0))
            assert lengths[-1] <= 60, f"{path.relative_to(ROOT)}: {node.name} has {lengths[-1]} lines"
    assert len(lengths) > 100 and statistics.median(lengths) < 12


def test_every_file_and_every_public_name_has_a_docstring():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for module in (importlib.import_module(f"nxm_hf{name}") for name in MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name}"
