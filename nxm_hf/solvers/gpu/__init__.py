"""The backend for GPUs: the same masks by Triton kernels that pass once over memory. torch for CUDA brings Triton.

Triton is imported, and a kernel compiled and tested, when the first tensor comes that is large enough. Without Triton,
or with one that does not work here, torch computes the masks.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from nxm_hf.solvers import self_test
from nxm_hf.solvers.backend import Backend, Kernels
from nxm_hf.solvers.base import NMPattern, Solver, solve_alone


class _GPUKernels(Kernels, Protocol):
    """The functions of `kernels` beside the operations on N:M groups."""

    def prices(self, q: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]: ...


def _load() -> _GPUKernels:
    from nxm_hf.solvers.gpu import kernels

    return kernels


BACKEND = Backend("cuda", "Triton", _load)


def supports_prices(q: Tensor, n: int) -> bool:
    """Return whether there is a kernel for the prices of these tiles, and it works.

    Args:
        q: Whole scores of tiles, (m, m, tiles).
        n: Entries kept in each row and column.
    """
    m = len(q)
    if q.dtype != torch.int32 or m not in BACKEND.group_sizes or not BACKEND.available(q):
        return False
    name = f"prices of {n}:{m}-transposable on {q.device}"
    return BACKEND.passes(name, self_test.prices_are_right, prices, n, m, q.device)


def prices(q: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return prices of rows and of columns, (m, tiles) each, and which tiles they settle.

    Args:
        q: Whole scores of tiles, (m, m, tiles).
        n: Entries kept in each row and column.
    """
    return BACKEND.kernels.prices(q, n)


def by_gpu_counting(scores: Tensor, pattern: NMPattern) -> Tensor:
    """Keep each score that fewer than n others of its group beat, on a GPU; of equal scores the first wins.

    Args:
        scores: The scores.
        pattern: The N:M pattern.
    """
    return solve_alone(BACKEND.fill_masks, scores, pattern)


SOLVERS: dict[str, Solver[Any]] = {"nm": Solver(by_gpu_counting, BACKEND.supports_mask, BACKEND.fill_masks)}
