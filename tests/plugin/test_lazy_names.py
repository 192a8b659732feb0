"""`import nxm_hf` imports nothing else until a name is used; all names are there, for people and for type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nxm_hf

SOURCE = Path(nxm_hf.__file__)


def run(code: str) -> str:
    """Run code in a process of its own, and return what it printed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def names_for_type_checkers() -> dict[str, str]:
    """Return the names in the block `if TYPE_CHECKING`, with their modules."""
    block = next(
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_see_the_names_that_are_imported_when_used():
    listed = names_for_type_checkers()
    submodules = {name for name, module in listed.items() if module == "nxm_hf"}
    assert {*listed, "__version__"} == set(nxm_hf.__all__)
    assert {name: f"nxm_hf.{module}" for name, module in nxm_hf._MODULES.items()} == {
        name: module for name, module in listed.items() if name not in submodules
    }
    for name in nxm_hf.__all__:
        assert getattr(nxm_hf, name) is not None


def test_importing_the_library_imports_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "accelerate", "huggingface_hub", "numpy", "yaml")
    assert run(f"import nxm_hf, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_dir_and_star_give_every_name_before_any_was_used():
    assert run("import nxm_hf; print(set(nxm_hf.__all__) <= set(dir(nxm_hf)))") == "True"
    assert run("from nxm_hf import *; import nxm_hf; print(set(nxm_hf.__all__) <= set(globals()))") == "True"


def test_a_folder_of_the_library_is_an_attribute_without_being_imported_by_name():
    assert run("import nxm_hf; print(nxm_hf.storage.verify.__name__, nxm_hf.config.NxMConfig.__name__)") == (
        "verify NxMConfig"
    )


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'nxm_hf' has no attribute 'NxMTrainr'"):
        nxm_hf.NxMTrainr  # noqa: B018
    assert not hasattr(nxm_hf, "__wrapped__")
