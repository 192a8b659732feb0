"""Tiles that prices do not settle: fill each column to n, then swap entries out of rows that have too many.

`nxm_hf.solvers.transposable_paths` does the same with tensors. It takes each step for all tiles together, which is fast
for thousands of tiles on any device. The form here loops over one tile in numba, which is fast for the few tiles left
on a CPU.
"""

import numpy as np

from nxm_hf.solvers.cpu.intrinsics import helper, relax
from nxm_hf.solvers.cpu.llvm_vectors import LANES

FAR = 1 << 30  # more than any path costs
Workspace = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@helper
def workspace(m: int) -> Workspace:
    """Return arrays for `settle_tile`, each with a part for rows (0) and one for columns (1).

    They hold the scores of entries, and flags for the entries that a path may use. They also hold the distance of each
    line, and the previous line on the path to it.

    Args:
        m: Side of a tile.
    """
    room = max(m, LANES)
    lines, allowed = np.zeros((2, m, room), np.int32), np.zeros((2, m, room), np.int32)
    return lines, allowed, np.empty((2, room), np.int32), np.empty((2, room), np.int32)


@helper
def settle_tile(
    entries: np.ndarray,
    row_prices: np.ndarray,
    col_prices: np.ndarray,
    flags: np.ndarray,
    lane: int,
    n: int,
    work: Workspace,
) -> None:
    """Flag the best n of each row and column of one tile. On entry, those above both prices are flagged.

    Args:
        entries: The integer scores of sixteen tiles, (m, m, lanes).
        row_prices: The prices of rows, (m, lanes).
        col_prices: The prices of columns, (m, lanes).
        flags: The flags to complete, (m, m, lanes).
        lane: Which tile to settle.
        n: Kept entries of a row and of a column.
        work: The result of `workspace`.
    """
    m = len(entries)
    lines, allowed, far, origin = work
    surplus, room = np.empty(m, np.int32), np.empty(m, np.int32)
    surplus[:], room[:] = -n, n
    for i in range(m):
        for j in range(m):
            score, flag = entries[i, j, lane], np.int32(flags[i, j, lane])
            lines[0, i, j], lines[1, j, i] = score, -score
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
def fill_column(
    j: int,
    room: int,
    lines: np.ndarray,
    allowed: np.ndarray,
    row_prices: np.ndarray,
    price: int,
    lane: int,
    surplus: np.ndarray,
) -> None:
    """Flag `room` more of the entries that equal the column's price.

    It begins at the row with the same number as the column. So the rows of a tile with equal scores all get n entries.

    Args:
        j: The column.
        room: How many entries it lacks.
        lines: See `workspace`.
        allowed: See `workspace`.
        row_prices: The prices of rows, (m, lanes).
        price: The price of the column.
        lane: The tile.
        surplus: How many entries each row has too many; updated.
    """
    m = len(surplus)
    for i in range(m):
        if room and lines[0, (j + i) % m, j] - row_prices[(j + i) % m, lane] == price:
            allowed[0, (j + i) % m, j], allowed[1, j, (j + i) % m] = 1, 0
            surplus[(j + i) % m] += 1
            room -= 1


@helper
def find_paths(
    lines: np.ndarray, allowed: np.ndarray, far: np.ndarray, origin: np.ndarray, surplus: np.ndarray
) -> None:
    """Find the cheapest swaps that move one entry from a row with a surplus to any row (Bellman-Ford).

    A step from row to column drops an entry, and a step from column to row adds one.

    Args:
        lines: See `workspace`.
        allowed: See `workspace`.
        far: Receives the score that the swaps lose.
        origin: Receives the line that each step came from.
        surplus: How many entries each row has too many.
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
def swap_along(allowed: np.ndarray, far: np.ndarray, origin: np.ndarray, surplus: np.ndarray) -> None:
    """Move one entry along the cheapest path to a row that has too few.

    Args:
        allowed: See `workspace`; updated.
        far: What `find_paths` has written.
        origin: What `find_paths` has written.
        surplus: How many entries each row has too many; updated.
    """
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
