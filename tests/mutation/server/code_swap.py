"""Functions that are loaded get the code of another text of their file, and nothing is imported again.

A function keeps its place everywhere: in classes, registries and the hands of other functions. Its code object alone
changes. So the new text must differ inside the bodies of functions; anything else runs at import.
"""

import gc
import inspect
from collections.abc import Collection, Iterator
from types import CodeType, FunctionType


class NotSwappable(Exception):
    """The new text differs where no loaded function can take it over."""


def loaded_functions(paths: Collection[str]) -> dict[str, list[FunctionType]]:
    """Return all functions that were made of some files, by file.

    Args:
        paths: The files, as `co_filename` gives them.
    """
    gc.unfreeze()  # what is frozen is not among the objects of the collector
    found: dict[str, list[FunctionType]] = {path: [] for path in paths}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in found:
            found[thing.__code__.co_filename].append(thing)
    return found


def swap(functions: Collection[FunctionType], path: str, before: str, after: str) -> set[int]:
    """Give functions of a file the code of another text. Return the `id` of each code object that may now run.

    Args:
        functions: All functions of the file that are loaded.
        path: The file.
        before: The text that was loaded.
        after: The other text, with each function at the same line.

    Raises:
        NotSwappable: If the texts differ outside of functions, or if a loaded function is not in the new text or takes
            other variables of the functions around it. Then no function has been changed.
    """
    old, new = (compile(text, path, "exec", dont_inherit=True) for text in (before, after))
    codes = dict(_pairs(old, new))
    chosen = [(function, codes[function.__code__]) for function in functions if function.__code__ in codes]
    for function, code in chosen:
        if code is None or code.co_freevars != function.__code__.co_freevars:
            raise NotSwappable(f"{function.__qualname__} has another shape")
    for function, code in chosen:
        assert code is not None
        function.__code__ = code
    return {id(inner) for _, code in chosen if code is not None for inner in _with_inner(code)}


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType | None]]:
    """Yield each function in the code of a module with its counterpart, or None where it has none."""
    inner = list(_inner(old)), list(_inner(new))
    alike = [code.co_name for code in inner[0]] == [code.co_name for code in inner[1]]
    if old.co_flags & inspect.CO_OPTIMIZED:  # a function; bodies of classes and modules are not
        yield old, new
    elif not alike or _alone(old) != _alone(new):
        raise NotSwappable(f"{old.co_name} differs outside of functions")
    if alike:
        for pair in zip(*inner, strict=True):
            yield from _pairs(*pair)
    else:
        yield from ((code, None) for outer in inner[0] for code in _with_inner(outer))


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in _inner(code):
        yield from _with_inner(inner)


def _alone(code: CodeType) -> tuple[object, ...]:
    """Return what code does, without its functions and without the columns of its text."""
    constants = tuple((type(c), repr(c)) for c in code.co_consts if not isinstance(c, CodeType))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, constants, names, code.co_flags, code.co_argcount
