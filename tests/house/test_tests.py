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

# Files of the package whose tests stand in another file than `tests/<folder>/test_<file>.py`.
ELSEWHERE = {
    "cli/adapter_commands.py": "adapters/test_directory.py",
    "cli/prune_commands.py": "pruning/test_directory.py",
    "config/hub.py": "config/test_config_files.py",
    "config/values.py": "config/test_config.py",
    "engine/engine.py": "engine/test_engine_methods.py",  # and the other four test_engine_*.py
    "engine/sharded_state.py": "distributed/test_sharded.py",
    "layers/example_inputs.py": "permutation/test_equivalence.py",
    "patterns/base.py": "patterns/test_patterns.py",
    "patterns/block.py": "patterns/test_patterns.py",
    "patterns/dense.py": "patterns/test_patterns.py",
    "patterns/nm.py": "patterns/test_patterns.py",
    "patterns/transposable.py": "patterns/test_patterns.py",
    "patterns/unstructured.py": "patterns/test_patterns.py",
    "pruners/magnitude.py": "pruners/test_base.py",
    "recipes/dense.py": "trainer/test_trainer.py",
    "recipes/rigl.py": "methods/test_rewire.py",
    "recipes/set.py": "methods/test_rewire.py",
    "report/figure.py": "report/test_training_page.py",
    "report/html.py": "report/test_training_page.py",
    "report/pruning_page.py": "report/test_report.py",
    "report/stylesheet.py": "report/test_training_page.py",
    "report/svg.py": "report/test_charts.py",
    "solvers/dense.py": "solvers/test_solvers.py",
    "solvers/nm_network.py": "solvers/test_solvers.py",
    "solvers/transposable_paths.py": "solvers/test_transposable_duals.py",
    "solvers/transposable_tiles.py": "solvers/test_transposable_duals.py",
    "trainer/analysis_callback.py": "analysis/test_recording.py",
    "trainer/whole_checkpoints.py": "distributed/test_sharded.py",
}


def test_the_test_of_a_file_has_its_name_or_is_listed():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    named = {
        str(file): f"{file.parent}/test_{file.name}"
        for file in files
        if len(file.parts) == 2 and file.parts[0] != "families"  # tables, and kernels, are tested by folder
    }
    missing = {file: ELSEWHERE.get(file) for file, test in named.items() if not (TESTS / test).is_file()}
    assert not [file for file, test in missing.items() if test is None], "write it, or say where it is"
    assert not [test for test in ELSEWHERE.values() if not (TESTS / test).is_file()]
    assert not ELSEWHERE.keys() - missing.keys(), "these have a test file of their name by now"


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
