"""The fast tier on CPUs: the same masks by vector instructions, where numba is installed: `pip install nxm-hf[fast]`.

numba is imported, and a kernel compiled and tried, when the first tensor comes that is worth it. Who has no numba, or
one that does not work here, gets the masks from torch.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nxm_hf.solvers import self_test
from nxm_hf.solvers.base import Solver, alone, worth
from nxm_hf.solvers.self_test import FLOATS, IN_PLACE, Counts
from nxm_hf.solvers.transposable_duals import by_duals

LANES = 16
GROUPS = (2, 4, 8, 16, 32)  # an m for which sixteen groups fill whole vectors


@cache
def tier() -> ModuleType | None:
    """What launches the kernels, if numba can be imported."""
    try:
        from nxm_hf.solvers.cpu import launch
    except Exception:  # a numba that does not fit its NumPy or Python fails in many ways, and none is ours to report
        return None
    return launch


@cache
def proven(task: str, pattern: Any, dtype: torch.dtype) -> bool:
    """Whether a kernel compiles here and does what torch does."""

    name = f"{task} of {pattern.n}:{pattern.m} in {dtype}"
    return tier() is not None and self_test.passes(
        name, self_test.task_is_right, runner(task, pattern), task, pattern, dtype
    )


def runner(task: str, pattern: Any) -> self_test.Run:
    """What does a task of `groups` to tensors and returns its count."""
    return lambda *tensors: tier().over_groups(task, pattern, [tensors])[0]


@cache
def tiles_proven(n: int, m: int) -> bool:
    """`proven`, for the transposable masks."""
    pattern = Counts(n, m)

    def run(scores: Tensor, mask: Tensor) -> None:
        tier().over_tiles([scores], pattern, [mask])

    return tier() is not None and self_test.passes(
        f"of {n}:{m}-transposable", self_test.tiles_are_right, run, by_duals, pattern
    )


@cache
def row_proven() -> bool:
    """`proven`, for unstructured masks."""
    return tier() is not None and self_test.passes("of unstructured", self_test.row_is_right, tier().highest_of_row)


def works() -> bool:
    """Whether the kernel of 2:4, the one that is asked for most, does."""
    return proven("mask", Counts(2, 4), torch.float32)


def worthwhile(tensor: Tensor) -> bool:
    """Whether there are kernels for a tensor: on the CPU, of floats of 32 or 16 bits, and not small."""
    return tensor.device.type == "cpu" and tensor.dtype in FLOATS and worth(tensor)


def suits(task: str, pattern: Any, *tensors: Tensor) -> bool:
    """Whole vectors of groups, and none left over; what is written in place is fp32."""
    first = tensors[0]
    return (
        pattern.kind == "nm"
        and pattern.m in GROUPS
        and first.numel() % (LANES * pattern.m) == 0
        and worthwhile(first)
        and (task not in IN_PLACE or first.dtype == torch.float32)
        and (task == "mask" or all(tensor.is_contiguous() for tensor in tensors))
        and proven(task, Counts(pattern.n, pattern.m), first.dtype)
    )


def suits_groups(scores: Tensor, pattern: Any) -> bool:
    """`suits`, for a solver: any strides will do."""
    return suits("mask", pattern, scores)


def suits_tiles(scores: Tensor, pattern: Any) -> bool:
    """Tiles whose rows fill whole vectors."""
    return pattern.m in GROUPS[1:] and worthwhile(scores) and tiles_proven(pattern.n, pattern.m)


def suits_rows(scores: Tensor, pattern: Any) -> bool:
    """Any shape will do."""
    return worthwhile(scores) and row_proven()


def by_vectors(scores: Tensor, pattern: Any) -> Tensor:
    """N:M: keep the n highest scores of every group, sixteen groups at a time."""
    return alone(groups_of_many, scores, pattern)


def groups_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_vectors`, for a list."""
    tier().over_groups("mask", pattern, [(each.contiguous(), mask) for each, mask in zip(scores, masks, strict=True)])


def by_prices(scores: Tensor, pattern: Any) -> Tensor:
    """Transposable: keep the most score with n in each row and column, sixteen tiles at a time."""
    return alone(tiles_of_many, scores, pattern)


def tiles_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_prices`, for a list."""
    tier().over_tiles([each.float().contiguous() for each in scores], pattern, masks)


def by_bracket(scores: Tensor, pattern: Any) -> Tensor:
    """Unstructured: keep the highest scores; a sample brackets the last of them."""
    return alone(rows_of_many, scores, pattern)


def rows_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_bracket`, for a list."""
    tier().over_rows([each.float().contiguous() for each in scores], pattern, masks)


CATALOGUE = {
    "nm": Solver(by_vectors, suits_groups, groups_of_many),
    "transposable": Solver(by_prices, suits_tiles, tiles_of_many),
    "unstructured": Solver(by_bracket, suits_rows, rows_of_many),
}
