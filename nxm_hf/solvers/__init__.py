"""Solvers: given scores, the mask that holds a pattern and keeps the most of them.

A solver is a function `(scores, pattern) -> mask`. It asks the pattern for its numbers only (`n`, `m`,
`density` ...), expects scores that the pattern has checked, and returns a new bool tensor of their shape.
`SOLVERS` is the catalogue: for each kind of pattern its solvers, the default first. All solvers of
a kind keep the same score, and those of "nm" give the same mask bit for bit.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nxm_hf.solvers.blocks import by_blocks
from nxm_hf.solvers.enumeration import by_enumeration
from nxm_hf.solvers.everything import keep_everything
from nxm_hf.solvers.network import by_network
from nxm_hf.solvers.sorting import by_sorting
from nxm_hf.solvers.threshold import by_threshold

Solver = Callable[[Tensor, Any], Tensor]

SOLVERS: dict[str, tuple[Solver, ...]] = {
    "nm": (by_network, by_sorting),
    "transposable": (by_enumeration,),
    "unstructured": (by_threshold,),
    "block": (by_blocks,),
    "dense": (keep_everything,),
}


def solve(scores: Tensor, pattern: Any) -> Tensor:
    """Ask the default solver of this kind of pattern."""
    return SOLVERS[pattern.kind][0](scores, pattern)


__all__ = ["SOLVERS", "Solver", "solve"]
