"""The size of files and functions, and the form of docstrings."""

import ast
import importlib
import inspect
import statistics
from collections.abc import Iterator
from pathlib import Path

import nxm_hf

ROOT = Path(nxm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODULES = ("", ".analysis", ".methods", ".patterns", ".permutation", ".pruners", ".pruning", ".recipes", ".solvers")
QUESTIONS = {"What", "Whether", "How", "Where", "When", "Why", "Which", "Who", "Whose", "Those", "Of"}


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Yield every function of a file, and True if users may call it: no name on the way to it is private."""

    def visit(node: ast.AST, public: bool) -> Iterator[tuple[ast.FunctionDef, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield child, public and not child.name.startswith("_")
                yield from visit(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, public and not child.name.startswith("_"))
            else:
                yield from visit(child, public)

    yield from visit(ast.parse(path.read_text()), True)


def where(path: Path, node: ast.FunctionDef) -> str:
    """Return the file, line and name of a function."""
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_files_are_short_enough_to_read_in_one_go():
    """Families are tables of names, a few lines each, so they do not count towards the median."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 400}
    code = [length for name, length in lengths.items() if not name.startswith("families/")]
    assert 80 <= statistics.median(code) <= 160


def test_functions_are_short():
    lengths = []
    for path in FILES:
        for node, _ in functions(path):
            docstring = ast.get_docstring(node, clean=False)
            lengths.append(node.end_lineno - node.lineno - (len(docstring.splitlines()) if docstring else 0))
            assert lengths[-1] <= 60, f"{where(path, node)} has {lengths[-1]} lines"
    assert len(lengths) > 100 and statistics.median(lengths) < 12


def test_every_file_and_every_public_name_has_a_docstring():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
    for module in (importlib.import_module(f"nxm_hf{name}") for name in MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name}"


def test_docstrings_say_what_a_thing_does_and_ask_no_question():
    documented = (ast.FunctionDef, ast.ClassDef, ast.Module)
    first_words = [
        (str(path.relative_to(ROOT)), docstring.split()[0], docstring.splitlines()[0])
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
    ]
    assert len(first_words) > 800
    assert not [(file, line) for file, word, line in first_words if word in QUESTIONS]


def test_public_functions_explain_their_arguments():
    """A method without a docstring inherits that of its base class."""
    explained, silent = [], []
    for path in FILES:
        for node, public in functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            docstring = ast.get_docstring(node)
            if public and names and docstring:
                (explained if "Args:" in docstring else silent).append(where(path, node))
    assert len(explained) / (len(explained) + len(silent)) >= 0.85, f"without Args: {silent}"
