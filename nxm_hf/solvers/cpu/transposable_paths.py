"""The tiles that prices alone do not settle: each column takes n, and swaps move what rows have too much of.

One tile at a time, by loops that numba compiles; `relax` is a step over sixteen entries of a line.
"""

import numpy as np

from nxm_hf.solvers.cpu.intrinsics import helper, relax
from nxm_hf.solvers.cpu.llvm_vectors import LANES

FAR = 1 << 30  # more than any path costs


@helper
def workspace(m):
    """Room for `settle_tile`: of rows (0) and columns (1) the worth of entries, whether a path may use them, and how
    far away each line is, and where the path to it came from."""
    room = max(m, LANES)
    lines, allowed = np.zeros((2, m, room), np.int32), np.zeros((2, m, room), np.int32)
    return lines, allowed, np.empty((2, room), np.int32), np.empty((2, room), np.int32)


@helper
def settle_tile(entries, row_prices, col_prices, flags, lane, n, work):
    """Flag the best n of each row and column of the tile in this lane; those above both prices are flagged."""
    m = len(entries)
    lines, allowed, far, origin = work
    surplus, room = np.empty(m, np.int32), np.empty(m, np.int32)
    surplus[:], room[:] = -n, n
    for i in range(m):
        for j in range(m):
            worth, flag = entries[i, j, lane], np.int32(flags[i, j, lane])
            lines[0, i, j], lines[1, j, i] = worth, -worth
            allowed[0, i, j], allowed[1, j, i] = flag, 1 - flag
            surplus[i] += flag
            room[j] -= flag
    for j in range(m):
        if room[j]:
            fill_column(j, room[j], lines, allowed, row_prices, col_prices[j, lane], lane, surplus)
    while surplus.max() > 0:
        find_paths(lines, allowed, far, origin, surplus)
        swap_along(allowed, far, origin, surplus)
    for i in range(m):
        for j in range(m):
            flags[i, j, lane] = allowed[0, i, j]


@helper
def fill_column(j, room, lines, allowed, row_prices, price, lane, surplus):
    """Flag so many more of what equals the column's price, beginning at its own number: flat tiles come out level."""
    m = len(surplus)
    for i in range(m):
        if room and lines[0, (j + i) % m, j] - row_prices[(j + i) % m, lane] == price:
            allowed[0, (j + i) % m, j], allowed[1, j, (j + i) % m] = 1, 0
            surplus[(j + i) % m] += 1
            room -= 1


@helper
def find_paths(lines, allowed, far, origin, surplus):
    """What the cheapest swaps lose that move one entry from a row with a surplus to any row (Bellman and Ford).

    From row to column an entry is given up, from column to row one is taken; `origin` says where the step came from.
    """
    m, room = len(surplus), lines.shape[2]
    changed = 0
    for i in range(room):
        far[0, i] = far[1, i] = FAR
        origin[0, i] = origin[1, i] = -1
        if i < m and surplus[i] > 0:
            far[0, i] = 0
            changed |= 1 << i
    side = 0
    while changed:
        others = 0
        for i in range(m):
            if (changed >> i) & 1:
                for part in range(0, room, LANES):
                    line, other = 4 * ((side * m + i) * room + part), 4 * ((1 - side) * room + part)
                    nearer = relax(
                        lines.ctypes.data + line,
                        allowed.ctypes.data + line,
                        far.ctypes.data + other,
                        origin.ctypes.data + other,
                        far[side, i],
                        i,
                    )
                    others |= nearer << part
        changed, side = others, 1 - side


@helper
def swap_along(allowed, far, origin, surplus):
    """Move one entry along the cheapest path to a row that has too few."""
    end = -1
    for i in range(len(surplus)):
        if surplus[i] < 0 and (end < 0 or far[0, i] < far[0, end]):
            end = i
    surplus[end] += 1
    while origin[0, end] >= 0:
        j = origin[0, end]
        begin = origin[1, j]
        allowed[0, end, j], allowed[1, j, end] = 1, 0
        allowed[0, begin, j], allowed[1, j, begin] = 0, 1
        end = begin
    surplus[end] -= 1
