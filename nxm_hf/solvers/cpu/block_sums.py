"""The sums of the columns and the rows of a block, and the comparison of two blocks, each in one pass."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from nxm_hf.solvers.cpu.intrinsics import compiled

TOGETHER = 5  # rows that are added to the sums of columns at a time, which are then read and written a fifth as often


@cache
def sums_kernel(rows: int, columns: int) -> Callable[[np.ndarray, np.ndarray], int]:
    """Return `run(block, sums)`, which writes the sums of columns and then of rows. numba makes vectors of the loop.

    Args:
        rows: Rows of a block, a multiple of five.
        columns: Columns of a block.
    """

    def run(block: np.ndarray, sums: np.ndarray) -> int:
        zero = np.uint64(0)
        sums[:columns] = zero
        for row in range(0, rows, TOGETHER):
            a, b, c, d, e = zero, zero, zero, zero, zero
            for column in range(columns):
                u, v, w = block[row, column], block[row + 1, column], block[row + 2, column]
                x, y = block[row + 3, column], block[row + 4, column]
                sums[column] += u + v + w + x + y
                a, b, c, d, e = a + u, b + v, c + w, d + x, e + y
            first = columns + row
            sums[first], sums[first + 1], sums[first + 2], sums[first + 3], sums[first + 4] = a, b, c, d, e
        return 0

    return compiled(run, types.int64(types.uint64[:, ::1], types.uint64[::1]))


@cache
def equal_kernel() -> Callable[[np.ndarray, np.ndarray], int]:
    """Return `run(a, b)`: 1 if all words of `a` are those of `b`, which has no fewer, else 0."""

    def run(a: np.ndarray, b: np.ndarray) -> int:
        differing = np.uint64(0)
        for i in range(len(a)):
            differing |= a[i] ^ b[i]
        return 1 if differing == 0 else 0

    return compiled(run, types.int64(types.uint64[::1], types.uint64[::1]))
