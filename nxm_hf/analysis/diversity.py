"""Mask diversity: the number of masks that a pattern allows (Hubara et al., 2021, https://arxiv.org/abs/2102.08124)."""

import re
from functools import cache
from itertools import product
from math import comb, factorial, lgamma, log, log10, prod

from nxm_hf.patterns import NM, Block, Dense, Pattern, Unstructured, parse
from nxm_hf.patterns.base import kept_count
from nxm_hf.patterns.nm import check_counts

MAX_STATES = 120_000  # 7:14 tiles, which take a few seconds; 8:16 would take minutes


def mask_diversity(pattern: str | Pattern, numel: int, exact: bool = True) -> float:
    """Return the decimal logarithm of the number of masks that a weight of `numel` entries can have.

    Args:
        pattern: The sparsity pattern; also a transposable one for which there is no solver.
        numel: The number of entries of the weight; divide the result by it for the diversity per entry.
        exact: With False, use the formula of Hubara et al. for transposable patterns, which counts some masks more
            than once. It makes no difference for other patterns.

    Raises:
        ValueError: if the pattern does not divide `numel`, is unknown, or has too many masks to count exactly.

    Example:
        >>> round(mask_diversity("2:4", 64), 4), round(10 ** mask_diversity("2:4-transposable", 16))
        (12.4504, 90)
        >>> round(10 ** mask_diversity("2:4-transposable", 16, exact=False))
        144
    """
    if type(numel) is not int or numel < 0:
        raise ValueError(f"numel must be a number of weights; got {numel!r}. Write weight.numel().")
    # Masks can be counted even for tiles that no solver supports, so such a pattern is read here and not by `parse`.
    if tile := re.fullmatch(r"(\d+):(\d+)-transposable", str(pattern).strip().lower()):
        n, m = map(int, tile.groups())
        check_counts(n, m)
        per_tile = transposable_tiles(n, m) if exact else _hubara_count(n, m)
        return _group_count(pattern, numel, m * m) * log10(per_tile)
    return _log10_count(parse(pattern), numel)


def _log10_count(pattern: Pattern, numel: int) -> float:
    match pattern:
        case Dense():
            return 0.0
        case NM(n=n, m=m):
            return _group_count(pattern, numel, m) * log10(comb(m, n))
        case Unstructured(density=density):
            return _log10_comb(numel, kept_count(density, numel))
        case Block(rows=rows, cols=cols, density=density):
            blocks = _group_count(pattern, numel, rows * cols)
            return _log10_comb(blocks, kept_count(density, blocks))
    raise ValueError(
        f"The masks of {pattern} cannot be counted; only those of N:M, transposable, unstructured, block and dense "
        "patterns can. Write '2:4'."
    )


def transposable_tiles(n: int, m: int) -> int:
    """Count the m-by-m masks that keep n entries in every row and every column.

    Args:
        n: Kept entries of each row and column.
        m: The side of the tile.

    Raises:
        ValueError: if counting would take too long.

    Example:
        >>> transposable_tiles(2, 4), transposable_tiles(4, 8), transposable_tiles(2, 8)
        (90, 116963796250, 187530840)
    """
    n = min(n, m - n)  # exchanging kept and pruned entries does not change the number of masks
    if (states := comb(m + n, n)) > MAX_STATES:
        raise ValueError(
            f"Counting the transposable masks of {m}x{m} tiles takes {states} states, more than {MAX_STATES}. "
            "Give exact=False for the formula of the paper, which is too high."
        )
    return _count_fillings((0,) * n + (m,), n)


@cache
def _count_fillings(columns: tuple[int, ...], n: int) -> int:
    """Count the ways to fill rows with n entries each, where `columns[j]` columns still need j entries."""
    if not any(columns[1:]):
        return 1
    ways = 0
    # `taken[j - 1]` of the columns that need j get an entry from the next row, and need j - 1 after it.
    for taken in product(*(range(min(count, n) + 1) for count in columns[1:])):
        if sum(taken) == n:
            left = [have - out + into for have, out, into in zip(columns, (0, *taken), (*taken, 0), strict=True)]
            ways += prod(map(comb, columns[1:], taken)) * _count_fillings(tuple(left), n)
    return ways


def _hubara_count(n: int, m: int) -> int:
    """Return M! (M-1)! ... (M-N+1)!, the paper's count for one tile."""
    return prod(factorial(m - i) for i in range(n))


def _group_count(pattern: str | Pattern, numel: int, size: int) -> int:
    if numel % size:
        raise ValueError(f"{numel} weights do not split into groups of {size}, which {pattern} needs. Give a multiple.")
    return numel // size


def _log10_comb(total: int, kept: int) -> float:
    return (lgamma(total + 1) - lgamma(kept + 1) - lgamma(total - kept + 1)) / log(10)
