"""The loops around the LLVM code, compiled once per pattern."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from nxm_hf.solvers.cpu.intrinsics import (
    NUMBER,
    adamw_sixteen,
    adamw_sixteen_kept,
    compare,
    compiled,
    gather_kept,
    keep,
    restore,
    sixteen_groups,
    spread_kept,
)
from nxm_hf.solvers.cpu.llvm_vectors import LANES
from nxm_hf.solvers.cpu.nm_groups import OPERATIONS
from nxm_hf.solvers.kept_entries import CHUNK

Kernel = Callable[..., int]


@cache
def group_kernel(operation: str, n: int, m: int, bits: int, infinity: int) -> Kernel:
    """Return `run(first, last, x, y, z, factor)`, which applies an operation to a range of sixteens of groups.

    Args:
        operation: A name of `nm_groups.OPERATIONS`.
        n: Kept entries of a group.
        m: Entries of a group.
        bits: Width of a float.
        infinity: The bits of infinity in that format.

    Returns:
        The kernel; `x`, `y` and `z` are addresses of tensors, and `factor` holds the bits of an fp32 number. It returns
        the sum of all counts, or -1 if there was a NaN. It does not stop at a NaN.
    """
    number = list(OPERATIONS).index(operation)
    step = LANES * m

    def run(first: int, last: int, x: int, y: int, z: int, factor: int) -> int:
        total, broken = 0, False
        for at in range(first * step, last * step, step):
            count = sixteen_groups(number, n, m, bits, infinity, at, x, y, z, factor)
            broken |= count < 0
            total += count
        return -1 if broken else total

    return compiled(run, NUMBER(*[NUMBER] * 6))


@cache
def adamw_kernel(rounding: int, pulls: int) -> Kernel:
    """Return `run(first, last, weight, gradient, mask, first_moment, second_moment, numbers)`: a step of AdamW.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.
        pulls: 0 for a masked step, 1 for a step that pulls pruned entries of a dense weight to zero.

    Returns:
        The kernel; it works on a range of sixteens of entries. All its other arguments are addresses.
    """

    def run(first: int, last: int, weight: int, gradient: int, mask: int, m: int, v: int, numbers: int) -> int:
        for at in range(first * LANES, last * LANES, LANES):
            adamw_sixteen(rounding, pulls, at, weight, gradient, mask, m, v, numbers)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 8))


@cache
def adamw_kept_kernel(rounding: int) -> Kernel:
    """Return a masked step of AdamW whose moments are those of kept entries.

    It is `run(first, last, offsets, numel, weight, gradient, bits, first_moment, second_moment, numbers)`.

    Args:
        rounding: The index in `adamw_entries.ROUNDINGS` of torch's rounding.

    Returns:
        The kernel; it works on a range of chunks. `offsets` and `bits` are those of `KeptEntries`, and `numel` is the
        size of the weight, a multiple of sixteen. From `weight` on, all are addresses. It needs AVX-512.
    """

    def run(
        first: int,
        last: int,
        offsets: np.ndarray,
        numel: int,
        weight: int,
        gradient: int,
        bits: int,
        m: int,
        v: int,
        numbers: int,
    ) -> int:
        weights, gradients = np.zeros(CHUNK + LANES, np.float32), np.zeros(CHUNK + LANES, np.float32)
        w, g = weights.ctypes.data, gradients.ctypes.data
        for chunk in range(first, last):
            end = min((chunk + 1) * CHUNK, numel)
            count = 0
            for at in range(chunk * CHUNK, end, LANES):
                count += gather_kept(at, weight, gradient, bits, w + 4 * count, g + 4 * count)
            shift = 4 * offsets[chunk]
            for at in range(0, count, LANES):
                adamw_sixteen_kept(rounding, at, w, g, m + shift, v + shift, numbers)
            count = 0
            for at in range(chunk * CHUNK, end, LANES):
                count += spread_kept(at, weight, bits, w + 4 * count)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 2, types.int64[::1], *[NUMBER] * 7))


@cache
def compare_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, old, new, flags, room)`: flag the entries that differ, and gather their old bits.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. All its arguments but the first are addresses. There must be room for sixteen entries more than
        differ. It returns how many differ. It needs AVX-512.
    """
    width = bits // 8

    def run(sixteens: int, old: int, new: int, flags: int, room: int) -> int:
        count = 0
        for at in range(0, sixteens * LANES, LANES):
            count += compare(bits, at, old, new, flags, room + width * count)
        return count

    return compiled(run, NUMBER(*[NUMBER] * 5))


@cache
def keep_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, source, mask, out, flags, room)`: write kept entries, and hold what that overwrites.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. It differs from `compare_kernel` in that it writes the new entries itself.
    """
    width = bits // 8

    def run(sixteens: int, source: int, mask: int, out: int, flags: int, room: int) -> int:
        count = 0
        for at in range(0, sixteens * LANES, LANES):
            count += keep(bits, at, source, mask, out, flags, room + width * count)
        return count

    return compiled(run, NUMBER(*[NUMBER] * 6))


@cache
def restore_kernel(bits: int) -> Kernel:
    """Return `run(sixteens, entries, flags, room, step)`: write old bits over the flagged entries.

    Args:
        bits: Width of an entry, 16 or 32.

    Returns:
        The kernel. From `entries` to `room` its arguments are addresses. `step` is the width of an entry in bytes, or
        0 if all flagged entries had the bits that stand sixteen times at `room`. It needs AVX-512.
    """

    def run(sixteens: int, entries: int, flags: int, room: int, step: int) -> int:
        for at in range(0, sixteens * LANES, LANES):
            room += step * restore(bits, at, entries, flags, room)
        return 0

    return compiled(run, NUMBER(*[NUMBER] * 5))
