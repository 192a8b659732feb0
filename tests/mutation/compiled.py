"""Which files hold code that is compiled, or that writes code which is compiled."""

import ast
from pathlib import Path

COMPILERS = {"numba", "llvmlite"}


def compiled_files(root: Path, package: str) -> set[str]:
    """Return the files of which compiled code may be kept, on disk or in a function, from before a change.

    These are files that import a compiler, their neighbours, and files of the package that they import.

    Args:
        root: The root of the tree.
        package: The folder of the package.
    """
    imported = {path: _imported(path) for path in (root / package).rglob("*.py")}
    users = [path for path, names in imported.items() if {name.split(".")[0] for name in names} & COMPILERS]
    folders = {path.parent for path in users}
    names = set().union(*(imported[path] for path in users))
    found = {path for path in imported if path.parent in folders or _module(path.relative_to(root)) in names}
    return {str(path.relative_to(root)) for path in found}


def _imported(path: Path) -> set[str]:
    """Return the names of modules that a file imports, and all that may be one."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")
