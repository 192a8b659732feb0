"""Solvers: given scores, the mask that holds a pattern and keeps the most of them.

A solver is a function `(scores, pattern) -> mask`. It asks the pattern for its numbers only (`n`, `m`,
`density` ...), expects scores that the pattern has checked, and returns a new bool tensor of their shape.
`SOLVERS` is the catalogue: for each kind of pattern its solvers, the fastest first; the first that suits is asked.
All solvers of a kind keep the same score, and those of "nm" give the same mask bit for bit.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nxm_hf.solvers import cpu, gpu
from nxm_hf.solvers.base import Solver, buffers, reference_only
from nxm_hf.solvers.block_topk import by_blocks
from nxm_hf.solvers.dense import keep_everything
from nxm_hf.solvers.nm_counting import by_wins, groups_fill_words, wins_of_many
from nxm_hf.solvers.nm_network import by_network
from nxm_hf.solvers.nm_sort import by_sorting
from nxm_hf.solvers.transposable_duals import by_duals
from nxm_hf.solvers.transposable_enumeration import by_enumeration, four_by_four
from nxm_hf.solvers.unstructured_threshold import by_threshold, thresholds_of_many

SOLVERS: dict[str, tuple[Solver, ...]] = {
    "nm": (
        cpu.CATALOGUE["nm"],
        gpu.CATALOGUE["nm"],
        Solver(by_wins, groups_fill_words, wins_of_many),
        Solver(by_network),
        Solver(by_sorting),
    ),
    "transposable": (cpu.CATALOGUE["transposable"], Solver(by_enumeration, four_by_four), Solver(by_duals)),
    "unstructured": (cpu.CATALOGUE["unstructured"], Solver(by_threshold, many=thresholds_of_many)),
    "block": (Solver(by_blocks),),
    "dense": (Solver(keep_everything),),
}


def choose(scores: Tensor, pattern: Any) -> Solver:
    """The fastest solver that suits these scores."""
    return next(solver for solver in SOLVERS[pattern.kind] if solver.suits(scores, pattern))


def solve(scores: Tensor, pattern: Any) -> Tensor:
    """The mask, by the fastest solver that suits."""
    return choose(scores, pattern)(scores, pattern)


def solve_many(scores: Sequence[Tensor], pattern: Any, out: Sequence[Tensor] | None = None) -> list[Tensor]:
    """The masks of a list, written into the bool tensors of `out` if there are any.

    >>> import torch
    >>> from nxm_hf.patterns import NM
    >>> scores = [torch.tensor([3.0, 1, 2, 0]), torch.tensor([[0.0, 9]])]
    >>> [mask.int().tolist() for mask in solve_many(scores, NM(1, 2))]
    [[1, 0, 1, 0], [[0, 1]]]
    """
    masks = buffers(scores, out)
    chosen: dict[Solver, list[int]] = {}
    for place, each in enumerate(scores):
        if each.numel():
            chosen.setdefault(choose(each, pattern), []).append(place)
    for solver, places in chosen.items():
        solver.fill([scores[place] for place in places], pattern, [masks[place] for place in places])
    return masks


__all__ = ["SOLVERS", "Solver", "choose", "reference_only", "solve", "solve_many"]
