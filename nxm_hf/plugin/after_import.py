"""Run a function once a module has been imported, without importing it."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def after_import(module: str, function: Callable[[], object]) -> None:
    """Call a function once a module has been imported: now if it has been, else right after its import.

    Args:
        module: The dotted name of the module.
        function: The function. An error that it raises is raised by the import.

    Example:
        >>> after_import("json", lambda: print("json is there"))
        json is there
    """
    if module in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Finder(module, function))


class _Finder:
    """Find one module as the other finders do, and have a function called after its code has run."""

    def __init__(self, module: str, function: Callable[[], object]) -> None:
        self.module, self.function = module, function
        self._asking = False  # the other finders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            self._call_after(spec.loader)
        return spec

    def _call_after(self, loader: Any) -> None:
        """Change one loader, which loads this module alone."""
        execute = loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            loader.exec_module = execute
            execute(module)
            sys.meta_path.remove(self)
            self.function()

        loader.exec_module = execute_and_call
