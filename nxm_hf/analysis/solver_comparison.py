"""A comparison of solvers on one weight: how long each takes, and how much of the best mask's magnitude it keeps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from nxm_hf.patterns import Pattern, parse
from nxm_hf.solvers import SOLVERS, Solver
from nxm_hf.solvers.published import PUBLISHED
from nxm_hf.solvers.transposable_tiles import tiles
from nxm_hf.text import table

ENOUGH = 0.5  # seconds of a solver that need not be asked again
TIMES = 5


@dataclass(frozen=True)
class SolverResult:
    """What one solver made of a weight; `mean` and `worst` are over its groups or tiles, 1 being the best mask."""

    solver: str
    seconds: float
    mean: float
    worst: float
    density: float
    violations: int

    def row(self) -> tuple[str, ...]:
        """The solver's line of the table."""
        shares = (f"{share:.6f}" for share in (self.mean, self.worst))
        return self.solver, f"{self.seconds * 1e3:.2f} ms", *shares, f"{self.density:.4f}", str(self.violations)


@dataclass(frozen=True)
class SolverComparison:
    """The results of all solvers, the one that `solve` asks first; prints as a table."""

    title: str
    results: tuple[SolverResult, ...]

    def __str__(self) -> str:
        head = ("solver", "time", "kept", "worst", "density", "violations")
        return f"{self.title}\n\n{table(head, [result.row() for result in self.results])}"


@torch.no_grad()
def compare_solvers(weight: Tensor, pattern: str | Pattern, only: Sequence[str] | None = None) -> SolverComparison:
    """Ask every solver of a pattern, those of papers too, for the mask of a weight; or `only` those of some names.

    "kept" and "worst" are the kept magnitude over that of the best mask, the mean and the least over the groups or
    tiles of the pattern. A solver that leaves some short of N can come out above 1. Those of papers can be slow:
    a part of a large weight tells as much.

    >>> weight = torch.tensor([[9.0, -1, 7, 4], [1, 2, 3, 0], [8, 3, -5, 4], [1, 2, 6, 2]])
    >>> print(compare_solvers(weight, "2:4-transposable", only=["by_enumeration", "2-approximation"]))
    2:4-transposable of 4x4 torch.float32 on cpu
    <BLANKLINE>
    solver           time     kept      worst     density  violations
    ---...
    by_enumeration   ... ms  1.000000  1.000000  0.5000   0
    2-approximation  ... ms  0.842105  0.842105  0.3125   0
    """
    pattern, scores = parse(pattern), weight.detach().abs()
    groups = _groups(_finite(scores), pattern)
    best = (groups * _groups(pattern.mask(scores), pattern)).sum(1)
    results = []
    for name, solver in _chosen(scores, pattern, only).items():
        mask, seconds = _timed(solver, scores, pattern)
        share = ((groups * _groups(mask, pattern)).sum(1) / best).nan_to_num(1)  # where there was nothing to keep
        quality = float(share.mean()), float(share.min()), float(mask.double().mean())
        results.append(SolverResult(name, seconds, *quality, pattern.violations(mask)))
    shape = "x".join(map(str, weight.shape))
    return SolverComparison(f"{pattern} of {shape} {weight.dtype} on {weight.device}", tuple(results))


def _chosen(scores: Tensor, pattern: Pattern, only: Sequence[str] | None) -> dict[str, Solver]:
    named = {solver.__name__: solver for solver in SOLVERS[pattern.kind]}
    functions = {solver.one for solver in named.values()}
    papers = PUBLISHED.get(pattern.kind, {})
    named |= {name: solver for name, solver in papers.items() if solver.one not in functions}
    named = {name: solver for name, solver in named.items() if solver.suits(scores, pattern)}
    if wrong := set(only or ()) - set(named):
        raise ValueError(
            f"No solver {', '.join(map(repr, sorted(wrong)))} suits {pattern} here; these do: {', '.join(named)}."
        )
    return {name: solver for name, solver in named.items() if only is None or name in only}


def _timed(solver: Solver, scores: Tensor, pattern: Pattern) -> tuple[Tensor, float]:
    """A mask, and the seconds it takes; the first time is left out unless it is enough."""
    times: list[float] = []
    while len(times) < TIMES + 1 and sum(times) < ENOUGH:
        begin = time.perf_counter()
        mask = solver(scores, pattern)
        if scores.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return mask, median(times[1:] or times)


def _finite(scores: Tensor) -> Tensor:
    """As doubles, an infinity as large as twice all others together."""
    scores = scores.double()
    return scores.nan_to_num(posinf=2 * float(scores.masked_fill(scores.isinf(), 0).sum() + 1))


def _groups(weight: Tensor, pattern: Pattern) -> Tensor:
    """What is chosen from at a time, a row for each: groups, tiles, or the whole weight."""
    if pattern.kind == "nm":
        return weight.reshape(-1, pattern.m)
    if pattern.kind == "transposable":
        parts = tiles(weight.contiguous(), pattern.m, weight.numel())
        return torch.cat([part.reshape(pattern.m**2, -1).T for part in parts])
    return weight.reshape(1, -1)
