"""The fast tier on GPUs: the same masks by kernels that pass once over memory, where Triton is, as with torch for CUDA.

Triton is imported, and a kernel compiled and tried, when the first tensor comes that is worth it. Who has no Triton, or
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

DEVICE = "cuda"
GROUPS = (2, 4, 8, 16, 32)  # Triton's blocks have sides that are powers of two


@cache
def tier() -> ModuleType | None:
    """What launches the kernels, if Triton can be imported."""
    try:
        from nxm_hf.solvers.gpu import kernels
    except Exception:  # it is not installed, or does not fit torch, Python or the driver
        return None
    return kernels


def absence() -> str | None:
    """Why these kernels are not in use here, or None where they are."""
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return None if tier() else "Triton cannot be imported"


@cache
def proven(task: str, pattern: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel compiles here and does what torch does."""
    name = f"{task} of {pattern.n}:{pattern.m} in {dtype} on {device}"
    return self_test.passes(name, self_test.task_is_right, runner(task, pattern), task, pattern, dtype, device)


@cache
def prices_proven(n: int, m: int, device: torch.device) -> bool:
    """`proven`, for the prices of transposable tiles."""
    name = f"prices of {n}:{m}-transposable on {device}"
    return self_test.passes(name, self_test.prices_are_right, tier().prices, n, m, device)


def runner(task: str, pattern: Any) -> self_test.Run:
    """What does a task to tensors and returns its count."""
    return lambda *tensors: tier().run(task, pattern.n, pattern.m, *tensors)


def suits(task: str, pattern: Any, *tensors: Tensor) -> bool:
    """Whether there is a kernel for a task on these tensors, and it works."""
    first = tensors[0]
    return (
        pattern.kind == "nm"
        and pattern.m in GROUPS
        and _worthwhile(first)
        and first.dtype in (FLOATS[:1] if task in IN_PLACE else FLOATS)
        and (task == "mask" or all(tensor.is_contiguous() for tensor in tensors))
        and proven(task, Counts(pattern.n, pattern.m), first.dtype, first.device)
    )


def suits_prices(q: Tensor, n: int) -> bool:
    """Whether there is a kernel for the prices of these tiles, (m, m, tiles), and it works."""
    m = len(q)
    return q.dtype == torch.int32 and m in GROUPS and _worthwhile(q) and prices_proven(n, m, q.device)


def _worthwhile(tensor: Tensor) -> bool:
    return tensor.device.type == DEVICE and worth(tensor) and tier() is not None


def suits_scores(scores: Tensor, pattern: Any) -> bool:
    """`suits`, for a solver: any strides will do."""
    return suits("mask", pattern, scores)


def by_ranks(scores: Tensor, pattern: Any) -> Tensor:
    """N:M: keep what fewer than n of its group beat; of equal scores the first, on a GPU."""
    return alone(ranks_of_many, scores, pattern)


def ranks_of_many(scores: Sequence[Tensor], pattern: Any, masks: Sequence[Tensor]) -> None:
    """`by_ranks`, for a list."""
    for each, mask in zip(scores, masks, strict=True):
        tier().launch("mask", pattern.n, pattern.m, each.contiguous(), mask)


CATALOGUE = {"nm": Solver(by_ranks, suits_scores, ranks_of_many)}
