"""The sums of the columns and the rows of a block, in one pass over it."""

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
