"""Compare the solvers of a pattern on one weight: their time, and the magnitude that their masks keep."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern, Transposable, parse
from nxm_hf.solvers import SOLVERS, Solver
from nxm_hf.solvers.published import PUBLISHED
from nxm_hf.solvers.transposable_tiles import tiles
from nxm_hf.text import table

TIME_BUDGET = 0.5  # seconds, after which a solver is not timed again
REPEATS = 5


@dataclass(frozen=True)
class SolverResult:
    """The result of one solver.

    Args:
        solver: The name of its function.
        seconds: The median time of one mask.
        mean: The magnitude kept as a share of that of the best mask, averaged over groups or tiles.
        worst: The smallest such share.
        density: The fraction of entries that its mask keeps.
        violations: The number of groups or tiles that break the pattern.
    """

    solver: str
    seconds: float
    mean: float
    worst: float
    density: float
    violations: int

    def row(self) -> tuple[str, ...]:
        """Return the row of this solver in the table, a text for each column."""
        time_text, density = f"{self.seconds * 1e3:.2f} ms", f"{self.density:.4f}"
        return self.solver, time_text, f"{self.mean:.6f}", f"{self.worst:.6f}", density, str(self.violations)


@dataclass(frozen=True)
class SolverComparison:
    """The results of all compared solvers; prints as a table.

    Args:
        title: The pattern, and the shape, dtype and device of the weight.
        results: Our own solvers in the order in which `solve` tries them, then published ones.
    """

    title: str
    results: tuple[SolverResult, ...]

    def __str__(self) -> str:
        header = ("solver", "time", "kept", "worst", "density", "violations")
        return f"{self.title}\n\n{table(header, [result.row() for result in self.results])}"


@torch.no_grad()
def compare_solvers(weight: Tensor, pattern: str | Pattern, only: Sequence[str] | None = None) -> SolverComparison:
    """Run every solver of a pattern on a weight, published algorithms included.

    A mask that keeps fewer or more entries than the pattern can have a share above 1. Published solvers can be slow;
    a part of a large weight is enough.

    Args:
        weight: The weight, whose magnitudes are the scores.
        pattern: The sparsity pattern.
        only: The names of the solvers to run; by default all that support this weight and pattern.

    Returns:
        The results, which print as a table.

    Raises:
        ValueError: if the weight has NaN or does not fit the pattern, or if `only` has a wrong name.

    Example:
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
    for name, solver in _select(scores, pattern, only).items():
        mask, seconds = _timed(solver, scores, pattern)
        share = ((groups * _groups(mask, pattern)).sum(1) / best).nan_to_num(1)  # 0/0 where all scores are 0
        result = SolverResult(
            solver=name,
            seconds=seconds,
            mean=float(share.mean()),
            worst=float(share.min()),
            density=float(mask.double().mean()),
            violations=pattern.violations(mask),
        )
        results.append(result)
    shape = "x".join(map(str, weight.shape))
    return SolverComparison(f"{pattern} of {shape} {weight.dtype} on {weight.device}", tuple(results))


def _select(scores: Tensor, pattern: Pattern, only: Sequence[str] | None) -> dict[str, Solver]:
    """Return the solvers that support these scores, by name, or raise if one of `only` does not."""
    solvers = {solver.__name__: solver for solver in SOLVERS[pattern.kind]}
    functions = {solver.function for solver in solvers.values()}
    published = PUBLISHED.get(pattern.kind, {})
    solvers |= {name: solver for name, solver in published.items() if solver.function not in functions}
    solvers = {name: solver for name, solver in solvers.items() if solver.supports(scores, pattern)}
    if unknown := set(only or ()) - set(solvers):
        names = ", ".join(map(repr, sorted(unknown)))
        raise ValueError(f"No solver {names} supports {pattern} for this weight; these do: {', '.join(solvers)}.")
    return {name: solver for name, solver in solvers.items() if only is None or name in only}


def _timed(solver: Solver, scores: Tensor, pattern: Pattern) -> tuple[Tensor, float]:
    """Return a mask and its median time; the first run is a warm-up unless it alone exceeds the time budget."""
    times: list[float] = []
    while len(times) < REPEATS + 1 and sum(times) < TIME_BUDGET:
        begin = time.perf_counter()
        mask = solver(scores, pattern)
        if scores.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return mask, median(times[1:] or times)


def _finite(scores: Tensor) -> Tensor:
    """Return the scores as doubles, with infinity replaced by more than twice the sum of the finite ones."""
    scores = scores.double()
    return scores.nan_to_num(posinf=2 * float(scores.masked_fill(scores.isinf(), 0).sum() + 1))


def _groups(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return a row for each group, each tile, or the whole weight: what a solver chooses from at a time."""
    if isinstance(pattern, NM):
        return weight.reshape(-1, pattern.m)
    if isinstance(pattern, Transposable):
        parts = tiles(weight.contiguous(), pattern.m, weight.numel())
        return torch.cat([part.reshape(pattern.m**2, -1).T for part in parts])
    return weight.reshape(1, -1)
