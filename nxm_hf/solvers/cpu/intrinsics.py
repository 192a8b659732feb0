"""The LLVM code as functions that numba's compiled code may call; they are inlined into the caller."""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import numba
from llvmlite.ir import IntType, IRBuilder, Value
from numba import types
from numba.core.registry import cpu_target
from numba.core.typing.templates import Signature
from numba.extending import intrinsic

from nxm_hf.solvers import comparator_network
from nxm_hf.solvers import transposable_enumeration as enumeration
from nxm_hf.solvers.cpu import (
    adamw_entries,
    changed_entries,
    nm_groups,
    transposable_enumeration,
    transposable_tiles,
    unstructured_rows,
)

NUMBER = types.int64
Inlined = Callable[..., int]
NOT_COMPILED = {"launch.py"}  # it calls kernels, and none of their files imports it
helper = numba.njit(nogil=True)  # for functions that kernels call; compiled into them


def inlined(function: Callable[..., Any]) -> Inlined:
    """Register an intrinsic, with the type of a call, which has no context. numba's own types count the context.

    Args:
        function: It takes the context and the types of the arguments, and returns what `as_function` returns. Arguments
            that are constants come as literal types.
    """
    return cast(Inlined, intrinsic(prefer_literal=True)(function))


def as_function(body: Callable[..., Value], *constants: types.Literal) -> tuple[Signature, Callable[..., Value]]:
    """Return an intrinsic in numba's form: its signature, and a function that generates its code.

    Args:
        body: Generates the code; called as `body(builder, *constants, *numbers)`.
        *constants: The types of the leading arguments, whose values are known.
    """
    _, *given = inspect.signature(body).parameters
    values_of_constants = [constant.literal_value for constant in constants]

    def generate(context: Any, builder: IRBuilder, signature: Signature, values: list[Value]) -> Value:
        return body(builder, *values_of_constants, *values[len(constants) :])

    return NUMBER(*constants, *[NUMBER for _ in given[len(constants) :]]), generate


# numba matches the parameters of these functions by name and number, so each is written out.


def _sixteen_groups(
    context: Any, operation: Any, n: Any, m: Any, bits: Any, infinity: Any, at: Any, x: Any, y: Any, z: Any, factor: Any
) -> Any:
    """Apply the operation with this number in `nm_groups.OPERATIONS` to the sixteen groups that begin at entry `at`."""

    def body(
        b: IRBuilder,
        number: int,
        n: int,
        m: int,
        bits: int,
        inf: int,
        at: Value,
        x: Value,
        y: Value,
        z: Value,
        by: Value,
    ) -> Value:
        emit = list(nm_groups.OPERATIONS.values())[number]
        return emit(nm_groups.Groups(b, n, m, IntType(bits), inf, at), x, y, z, by)

    return as_function(body, operation, n, m, bits, infinity)


def _adamw_sixteen(
    context: Any,
    rounding: Any,
    pulls: Any,
    at: Any,
    weight: Any,
    gradient: Any,
    mask: Any,
    first: Any,
    second: Any,
    numbers: Any,
) -> Any:
    return as_function(adamw_entries.adamw_entries, rounding, pulls)


def _adamw_sixteen_kept(
    context: Any, rounding: Any, at: Any, weight: Any, gradient: Any, first: Any, second: Any, numbers: Any
) -> Any:
    return as_function(adamw_entries.adamw_of_kept, rounding)


def _gather_kept(context: Any, at: Any, weight: Any, gradient: Any, bits: Any, weights: Any, gradients: Any) -> Any:
    return as_function(adamw_entries.gather_kept)


def _spread_kept(context: Any, at: Any, weight: Any, bits: Any, weights: Any) -> Any:
    return as_function(adamw_entries.spread_kept)


def _compare(context: Any, bits: Any, at: Any, old: Any, new: Any, flags: Any, room: Any) -> Any:
    return as_function(changed_entries.compare, bits)


def _keep(context: Any, bits: Any, at: Any, source: Any, mask: Any, out: Any, flags: Any, room: Any) -> Any:
    return as_function(changed_entries.keep, bits)


def _restore(context: Any, bits: Any, at: Any, entries: Any, flags: Any, room: Any) -> Any:
    return as_function(changed_entries.restore, bits)


def _relax(context: Any, line: Any, allowed: Any, far: Any, origin: Any, base: Any, source: Any) -> Any:
    return as_function(transposable_tiles.relax)


def _collect(context: Any, scores: Any, at: Any, room: Any, low: Any, high: Any, readable: Any) -> Any:
    return as_function(unstructured_rows.collect)


def _flag(context: Any, scores: Any, at: Any, flags: Any, threshold: Any, readable: Any) -> Any:
    return as_function(unstructured_rows.flag)


sixteen_groups = inlined(_sixteen_groups)
adamw_sixteen = inlined(_adamw_sixteen)
adamw_sixteen_kept = inlined(_adamw_sixteen_kept)
gather_kept, spread_kept = inlined(_gather_kept), inlined(_spread_kept)
compare, restore, keep = (inlined(each) for each in (_compare, _restore, _keep))
relax, collect, flag = inlined(_relax), inlined(_collect), inlined(_flag)


def _tile_step(body: Callable[..., Value]) -> Inlined:
    """Return a step of `transposable_tiles` as a function of addresses, and of n and m, which are constants."""

    def step(context: Any, n: Any, m: Any, x: Any, y: Any, z: Any, w: Any) -> Any:
        return as_function(body, n, m)

    return inlined(step)


copy_scores = _tile_step(transposable_tiles.copy_scores)
copy_flags = _tile_step(transposable_tiles.copy_flags)
spread_row = _tile_step(transposable_tiles.spread_row)
gather_row = _tile_step(transposable_tiles.gather_row)
round_all = _tile_step(transposable_tiles.round_all)
round_squares = _tile_step(transposable_tiles.round_squares)
price_rows = _tile_step(transposable_tiles.price_rows)
price_cols = _tile_step(transposable_tiles.price_cols)
keep_all = _tile_step(transposable_tiles.keep_all)
miscounted = _tile_step(transposable_tiles.miscounted)
add_pruned = _tile_step(transposable_tiles.add_pruned)
keep_row = _tile_step(transposable_tiles.keep_row)
copy_kept = _tile_step(transposable_tiles.copy_kept)
keep_best = _tile_step(transposable_enumeration.keep_best)
keep_nearest = _tile_step(transposable_enumeration.keep_nearest)


@cache
def has_avx512() -> bool:
    """Return whether numba compiles for a CPU with AVX-512. Code for such a CPU ends the process on any other."""
    features = str(cpu_target.target_context.codegen().magic_tuple()[2])
    return "+avx512f" in features.split(",")


def compiled(function: Callable[..., int], signature: Signature) -> Callable[..., int]:
    """Compile a function for one signature, to run without the GIL.

    The result is cached on disk, if a directory can be written to.

    Args:
        function: A loop around the functions of this file.
        signature: The types of its arguments and of its result.
    """
    assert isinstance(function, FunctionType)
    # numba checks only the function's own file for changes, and most of the compiled code is in other files.
    function.__qualname__ = f"{function.__qualname__}_{_digest_of_sources()}"
    compiler = partial(numba.njit, signature, nogil=True)
    try:
        return compiler(cache=True)(function)
    except RuntimeError:  # no directory that can be written to
        return compiler()(function)


@cache
def _digest_of_sources() -> str:
    own = {path for path in Path(nm_groups.__file__).parent.glob("*.py") if path.name not in NOT_COMPILED}
    files = [*sorted(own), *(Path(str(module.__file__)) for module in (comparator_network, enumeration))]
    return hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
