"""The vector code as functions that numba's compiled code may call; they are written into the caller."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nxm_hf.solvers import comparator_network
from nxm_hf.solvers.cpu import nm_groups, transposable_tiles, unstructured_rows
from nxm_hf.solvers.cpu.llvm_vectors import Value

NUMBER = types.int64
helper = numba.njit(nogil=True)  # what kernels call; compiled into them


def _as_function(body: Callable[..., Value], constants: tuple, arguments: int) -> tuple[types.Type, Callable]:
    """What numba asks of an intrinsic: its signature, and the code of `body(builder, *constants, *numbers)`."""
    known = [constant.literal_value for constant in constants]

    def generate(context, builder, signature, values):
        return body(builder, *known, *values[len(known) :])

    return NUMBER(*constants, *[NUMBER] * arguments), generate


@intrinsic(prefer_literal=True)
def sixteen_groups(context, task, n, m, bits, infinity, x, y, z, at):
    """The task of `groups` with this number, on the sixteen groups that begin at entry `at`."""

    def body(b, task, n, m, bits, infinity, *rest):
        return nm_groups.TASKS[task](b, n, m, ir.IntType(bits), infinity, *rest)

    return _as_function(body, (task, n, m, bits, infinity), 4)


@intrinsic
def relax(context, line, allowed, far, origin, base, source):
    """`transposable_tiles.relax`."""
    return _as_function(transposable_tiles.relax, (), 6)


@intrinsic
def collect(context, scores, at, room, low, high):
    """`unstructured_rows.collect`."""
    return _as_function(unstructured_rows.collect, (), 5)


@intrinsic
def flag(context, scores, at, flags, threshold):
    """`unstructured_rows.flag`."""
    return _as_function(unstructured_rows.flag, (), 4)


def _tile_step(body: Callable[..., Value]) -> Callable:
    """A function of `tiles`, for tiles whose n and m the caller knows as constants."""

    @intrinsic(prefer_literal=True)
    def step(context, n, m, x, y, z, w):
        return _as_function(body, (n, m), 4)

    return step


copy_scores, copy_flags, spread_row, gather_row = map(
    _tile_step,
    (
        transposable_tiles.copy_scores,
        transposable_tiles.copy_flags,
        transposable_tiles.spread_row,
        transposable_tiles.gather_row,
    ),
)
round_all, price_rows, price_cols, keep_all, miscounted = map(
    _tile_step,
    (
        transposable_tiles.round_all,
        transposable_tiles.price_rows,
        transposable_tiles.price_cols,
        transposable_tiles.keep_all,
        transposable_tiles.miscounted,
    ),
)


def compiled(function: FunctionType, signature: types.Type) -> Callable:
    """Compile for one signature, without the interpreter's lock; kept on disk where there is a place for it."""
    # numba looks for changes in the function's own file only, and most of what it compiles stands in others.
    function.__qualname__ = f"{function.__qualname__}_{_sources()}"
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no directory that can be written to
        return numba.njit(signature, nogil=True)(function)


@cache
def _sources() -> str:
    """A digest of what kernels are made from."""
    files = [*sorted(Path(nm_groups.__file__).parent.glob("*.py")), Path(comparator_network.__file__)]
    return hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
