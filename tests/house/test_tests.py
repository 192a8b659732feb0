"""The tests themselves: each stands where its module does, and none imports another."""

import ast
from pathlib import Path

import pytest

import nxm_hf

TESTS = Path(__file__).parents[1]
PACKAGE = Path(nxm_hf.__file__).parent
FILES = sorted(TESTS.rglob("test_*.py"))
# Folders that test something else than the folder of `nxm_hf` with their name; CONTRIBUTING.md says what.
OTHERS = {"benchmarks", "distributed", "examples", "house", "laws"}


def test_every_folder_of_tests_is_a_folder_of_the_package_or_listed():
    for path in FILES:
        folder = path.parent.relative_to(TESTS)
        assert folder.parts[:1] == () or folder.parts[0] in OTHERS or (PACKAGE / folder).is_dir(), path


def test_every_folder_of_the_package_has_tests():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")} - {Path(".")}
    assert not {folder for folder in folders if not list((TESTS / folder).glob("test_*.py"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_file_imports_another(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom | ast.Import) else []
        wrong = [name for name in names if any(part.startswith("test_") for part in name.split("."))]
        assert not wrong, f"line {node.lineno} imports {wrong[0]}: move what both need to tests/support"


def test_every_test_can_be_told_by_its_name():
    """The name of a test is a sentence: at least three words."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len(node.name.split("_")) >= 4, f"{path.relative_to(TESTS)}: {node.name}"
