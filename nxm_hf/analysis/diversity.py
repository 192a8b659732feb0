"""Mask diversity: how many masks a pattern allows, which is how much freedom it leaves."""

import re
from functools import cache
from itertools import product
from math import comb, factorial, lgamma, log, log10, prod

from nxm_hf.patterns import NM, Block, Dense, Pattern, Unstructured, parse
from nxm_hf.patterns.base import rounded_share
from nxm_hf.patterns.nm import check_counts

MOST_STATES = 120_000  # 7:14 tiles, which take a few seconds; 8:16 would take minutes


def mask_diversity(pattern: str | Pattern, numel: int, exact: bool = True) -> float:
    """The decimal logarithm of the number of masks that `numel` weights can have; over numel, that of each weight.

    The formula of Hubara et al., 2021 (https://arxiv.org/abs/2102.08124) counts transposable masks more than once;
    `exact=False` gives theirs. The formulas of other patterns are exact.

    >>> round(mask_diversity("2:4", 64), 4), round(10 ** mask_diversity("2:4-transposable", 16))
    (12.4504, 90)
    >>> round(10 ** mask_diversity("2:4-transposable", 16, exact=False))
    144
    """
    if type(numel) is not int or numel < 0:
        raise ValueError(f"numel is a number of weights; got {numel!r}. Write weight.numel().")
    # Masks that cannot be solved for yet can be counted, so such a pattern is read here and never made.
    if tile := re.fullmatch(r"(\d+):(\d+)-transposable", str(pattern).strip().lower()):
        n, m = map(int, tile.groups())
        check_counts(n, m)
        return _units(pattern, numel, m * m) * log10(transposable_tiles(n, m) if exact else _formula(n, m))
    return _log10_count(parse(pattern), numel)


def _log10_count(pattern: Pattern, numel: int) -> float:
    match pattern:
        case Dense():
            return 0.0
        case NM(n=n, m=m):
            return _units(pattern, numel, m) * log10(comb(m, n))
        case Unstructured(density=density):
            return _log10_comb(numel, rounded_share(density, numel))
        case Block(rows=rows, cols=cols, density=density):
            blocks = _units(pattern, numel, rows * cols)
            return _log10_comb(blocks, rounded_share(density, blocks))
    raise ValueError(
        f"The masks of {pattern} cannot be counted; that is known of N:M, transposable, unstructured, block and dense "
        "patterns. Write '2:4'."
    )


def transposable_tiles(n: int, m: int) -> int:
    """How many m-by-m masks keep n in every row and every column.

    >>> transposable_tiles(2, 4), transposable_tiles(4, 8), transposable_tiles(2, 8)
    (90, 116963796250, 187530840)
    """
    n = min(n, m - n)  # what is kept and what is pruned may change places
    if (states := comb(m + n, n)) > MOST_STATES:
        raise ValueError(
            f"Counting the transposable masks of {m}x{m} tiles takes {states} states, more than {MOST_STATES}. "
            "Give exact=False for the formula of the paper, which is too high."
        )
    return _fillings((0,) * n + (m,), n)


@cache
def _fillings(columns: tuple[int, ...], n: int) -> int:
    """Ways to fill rows with n each, where `columns[j]` columns still need j."""
    if not any(columns[1:]):
        return 1
    ways = 0
    for taken in product(*(range(min(count, n) + 1) for count in columns[1:])):
        if sum(taken) == n:
            left = [have - out + into for have, out, into in zip(columns, (0, *taken), (*taken, 0), strict=True)]
            ways += prod(map(comb, columns[1:], taken)) * _fillings(tuple(left), n)
    return ways


def _formula(n: int, m: int) -> int:
    """M! (M-1)! ... (M-N+1)!, the count of the paper for one tile."""
    return prod(factorial(m - i) for i in range(n))


def _units(pattern: str | Pattern, numel: int, size: int) -> int:
    if numel % size:
        raise ValueError(f"{numel} weights do not split into groups of {size}, which {pattern} needs. Give a multiple.")
    return numel // size


def _log10_comb(total: int, kept: int) -> float:
    return (lgamma(total + 1) - lgamma(kept + 1) - lgamma(total - kept + 1)) / log(10)
