"""Solvers: given scores, the mask that holds a pattern and keeps the most score.

A solver is a function `(scores, pattern) -> mask`. It reads only the numbers of the pattern (`n`, `m`, `density` ...).
It expects scores that the pattern has checked, and returns a new bool tensor of their shape. `SOLVERS` is the registry:
for each kind of pattern its solvers, the fastest first. The first that supports the scores is used. All solvers of a
kind keep the same score, and those of "nm" give the same mask bit for bit.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nxm_hf.solvers import cpu, gpu
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.base import PatternLike, Solver, mask_buffers, reference_only
from nxm_hf.solvers.block_topk import by_block_topk
from nxm_hf.solvers.dense import keep_everything
from nxm_hf.solvers.nm_counting import by_counting, counting_supports, fill_by_counting
from nxm_hf.solvers.nm_network import by_network
from nxm_hf.solvers.nm_sort import by_sorting
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_enumeration import by_enumeration, enumeration_supports
from nxm_hf.solvers.unstructured_threshold import by_threshold, fill_by_threshold

# A solver reads the members that patterns of its own kind have, so `Any` stands for that kind's protocol of `base`.
SOLVERS: dict[str, tuple[Solver[Any], ...]] = {
    "nm": (
        cpu.SOLVERS["nm"],
        gpu.SOLVERS["nm"],
        Solver(by_counting, counting_supports, fill_by_counting),
        Solver(by_network),
        Solver(by_sorting),
    ),
    "transposable": (
        cpu.SOLVERS["transposable"],
        Solver(by_enumeration, enumeration_supports),
        Solver(by_duals),
    ),
    "unstructured": (cpu.SOLVERS["unstructured"], Solver(by_threshold, list_function=fill_by_threshold)),
    "block": (Solver(by_block_topk),),
    "dense": (Solver(keep_everything),),
}


def choose(scores: Tensor, pattern: PatternLike) -> Solver[Any]:
    """Return the fastest solver that supports these scores.

    Args:
        scores: The scores.
        pattern: The pattern of the mask.
    """
    return next(solver for solver in SOLVERS[pattern.kind] if solver.supports(scores, pattern))


def solve(scores: Tensor, pattern: PatternLike) -> Tensor:
    """Return the mask, computed by the fastest solver that supports these scores.

    Args:
        scores: Scores without NaN, of a shape that fits the pattern.
        pattern: The pattern of the mask.

    Example:
        >>> import torch
        >>> from nxm_hf.patterns import NM
        >>> solve(torch.tensor([3.0, 1, 2, 0]), NM(2, 4)).int().tolist()
        [1, 0, 1, 0]
    """
    return choose(scores, pattern)(scores, pattern)


def solve_many(scores: Sequence[Tensor], pattern: PatternLike, out: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the masks of a list of scores.

    Args:
        scores: Scores without NaN, of shapes that fit the pattern.
        pattern: The pattern of all masks.
        out: Contiguous bool tensors to write the masks into.

    Raises:
        ValueError: `out` does not fit the scores.

    Example:
        >>> import torch
        >>> from nxm_hf.patterns import NM
        >>> scores = [torch.tensor([3.0, 1, 2, 0]), torch.tensor([[0.0, 9]])]
        >>> [mask.int().tolist() for mask in solve_many(scores, NM(1, 2))]
        [[1, 0, 1, 0], [[0, 1]]]
    """
    masks = mask_buffers(scores, out)
    by_solver: dict[Solver[Any], list[int]] = {}
    for i, each in enumerate(scores):
        if each.numel():
            by_solver.setdefault(choose(each, pattern), []).append(i)
    for solver, indices in by_solver.items():
        solver.fill([scores[i] for i in indices], pattern, [masks[i] for i in indices])
    return masks


__all__ = ["SOLVERS", "Backend", "Solver", "choose", "reference_only", "solve", "solve_many"]
