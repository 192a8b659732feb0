"""The tests themselves: each stands where its module does, and none imports another."""

import ast
from pathlib import Path

import pytest

import nxm_hf
from tests.support.places import ELSEWHERE, TESTS, place_of

PACKAGE = Path(nxm_hf.__file__).parent
FILES = sorted(TESTS.rglob("test_*.py"))
# Folders that test something else than the folder of `nxm_hf` with their name; CONTRIBUTING.md says what.
OTHERS = {"benchmarks", "clients", "distributed", "examples", "house", "laws", "mutation"}


def test_the_test_of_a_file_has_its_name_or_is_listed():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    places = {str(file): place_of(str(file)) for file in files}
    missing = {file: place for file, place in places.items() if not list(TESTS.glob(place))}
    assert not missing, "write the test file, or say in tests/support/places.py where it is"
    own = {file: TESTS / Path(file).parent / f"test_{Path(file).name}" for file in ELSEWHERE}
    assert not [file for file, test in own.items() if test.is_file()], "these have a test file of their name by now"
    assert not ELSEWHERE.keys() - places.keys(), "these files are gone"


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
