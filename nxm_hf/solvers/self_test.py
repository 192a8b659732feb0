"""Self-tests of compiled kernels: compare each with plain torch, on difficult numbers.

A compiler may not support this machine, or may miscompile our code. So every kernel is tested once before it is used.
Where it raises, or gives one wrong bit, torch does its work. The expected results are computed under `reference_only`,
so that no kernel is ever compared with itself.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from nxm_hf.solvers.base import NMPattern, Operation, reference_only
from nxm_hf.solvers.nm_sort import by_sorting

EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 6e4, float("inf"), float("-inf"))
FINITE = EXTREMES[:-2]
GROUPS = 256  # groups in the test of an operation
Run = Callable[..., int]

logger = logging.getLogger("nxm_hf")


@dataclass(frozen=True)
class Counts:
    """The numbers of an N:M pattern, which are all that kernels read of it."""

    n: int
    m: int
    kind: ClassVar[str] = "nm"


def passes(kernel: str, test: Callable[[], bool], warns: bool = True) -> bool:
    """Run a self-test. Log a warning and return False if it fails.

    Args:
        kernel: What the warning calls the kernel.
        test: Return whether the kernel is right. Anything that it raises is a failure, too.
        warns: Whether to log; there may be another kernel for the same work.
    """
    try:
        with reference_only():
            reason = None if test() else "its result differs from torch's"
    except Exception as error:  # compilers raise errors of many types
        reason = repr(error)
    if reason and warns:
        logger.warning("The compiled kernel %s does not work here, so torch does its work: %s.", kernel, reason)
    return reason is None


def operation_is_right(
    run: Run, operation: Operation, pattern: NMPattern, dtype: torch.dtype, device: torch.device | str
) -> bool:
    """Return whether a kernel leaves the same bits and returns the same count as the torch form of its operation.

    Args:
        run: The kernel, called with the tensors of `operation.inputs`.
        operation: What the kernel should do.
        pattern: The N:M pattern that the kernel is compiled for.
        dtype: The dtype of float inputs.
        device: The device of all inputs.
    """
    numbers: list[dict[str, float]] = [{"factor": factor} for factor in operation.factors] or [{}]
    for seed, number in product(range(2), numbers):
        tensors = _inputs(operation, pattern.m, dtype, device, seed)
        expected = [tensor.clone() for tensor in tensors]
        counts = run(*tensors, **number), operation.reference(pattern, *expected, **number)
        if counts[0] != counts[1] or not all(map(same_bits, tensors, expected)):
            return False
    if operation.refuses_nan:
        tensors[0][-1] = torch.nan
        return run(*tensors, **numbers[0]) == -1
    return True


def tiles_are_right(
    run: Callable[[Tensor, Tensor], None],
    solver: Callable[[Tensor, NMPattern], Tensor],
    pattern: NMPattern,
    squares: bool = False,
) -> bool:
    """Return whether a kernel finds transposable masks that are as good as those of a solver.

    Among the scores are a tile of zeros and one with a score that dwarfs all others.

    Args:
        run: `run(scores, mask)` writes the mask.
        solver: An exact solver.
        pattern: The transposable pattern.
        squares: Whether the masks should keep the largest sums of squares. The scores then have signs.
    """
    n, m = pattern.n, pattern.m
    scores = difficult_numbers(17 * m * 2 * m, torch.float32, "cpu", 0, ()).view(2 * m, 17 * m)
    scores = scores if squares else scores.abs()
    scores[:m, :m], scores[m, m] = 0, 1e30
    mask = torch.zeros(scores.shape, dtype=torch.bool, device="cpu")
    run(scores, mask)
    ours, best = (each.view(2, m, 17, m).transpose(1, 2) for each in (mask, solver(scores, pattern)))
    tiles = scores.double().pow(1 + squares).view(2, m, 17, m).transpose(1, 2)
    exact = (ours.sum(2) == n).all() and (ours.sum(3) == n).all()
    return bool(exact and ((tiles * ours).sum((2, 3)) >= (tiles * best).sum((2, 3)) * (1 - 1e-6)).all())


def projection_is_right(
    project: Callable[[Tensor, Tensor], None], nearest: Callable[[Tensor, Tensor], None], m: int
) -> bool:
    """Return whether a kernel writes what nearest masks keep, also over the weight itself.

    Args:
        project: `project(weight, out)` writes the nearest weight.
        nearest: `nearest(weight, mask)` writes its mask.
        m: Side of a tile.
    """
    weight = difficult_numbers(17 * m * 2 * m, torch.float32, "cpu", 1, ()).view(2 * m, 17 * m)
    weight[:m, :m], weight[m, m], weight[0, 4 * m] = -0.0, 1e30, float("inf")
    mask, out, own = torch.zeros(weight.shape, dtype=torch.bool, device="cpu"), weight.clone(), weight.clone()
    nearest(weight, mask)
    project(weight, out)
    project(own, own)
    expected = torch.where(mask, weight, 0.0) + 0.0
    return same_bits(out, expected) and same_bits(own, expected)


def prices_are_right(prices: Callable[[Tensor, int], Sequence[Tensor]], n: int, m: int, device: torch.device) -> bool:
    """Return whether a kernel settles the tiles that it reports as settled, and settles enough of them.

    No reference is needed: a mask of all entries above both prices is the best one if it has n in each row and column.

    Args:
        prices: `prices(q, n)` returns prices of rows and columns, and which tiles they settle.
        n: Entries kept in each row and column.
        m: Side of a tile.
        device: The device of the tiles.
    """
    q = difficult_numbers(m * m * 9, torch.float32, device, 0, ()).abs().mul_(2**20).int().view(m, m, 9)
    rows, cols, settled = prices(q, n)
    mask = q - rows[:, None] > cols
    right = (mask.sum(0) == n).all(0) & (mask.sum(1) == n).all(0)
    return bool(torch.equal(right, settled) and settled.sum() > 4)


def row_is_right(run: Callable[[Tensor, int, Tensor], None]) -> bool:
    """Return whether a kernel finds the highest scores of a row.

    Args:
        run: `run(scores, count, mask)` writes the mask of the `count` highest.
    """
    row = difficult_numbers(10_007, torch.float32, "cpu", 0, EXTREMES)
    mask = torch.zeros(row.shape, dtype=torch.bool, device="cpu")
    for count in (1, 5000, 10_000):
        run(row, count, mask)
        if not torch.equal(mask, by_sorting(row, Counts(count, len(row)))):
            return False
    return True


def difficult_numbers(
    count: int, dtype: torch.dtype, device: torch.device | str, seed: int, extremes: tuple[float, ...]
) -> Tensor:
    """Return random numbers with ties, zeros of both signs, and extremes among them.

    Args:
        count: How many numbers to draw. A third of them is rounded to halves, which makes ties and zeros.
        dtype: The dtype of the result.
        device: The device of the result.
        seed: The seed of the draw.
        extremes: Values that replace a fiftieth of the numbers each, at random places.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(count, generator=generator, device="cpu")
    numbers[: count // 3] = (numbers[: count // 3] * 2).round() / 2
    for extreme in extremes:
        numbers[torch.randint(count, (count // 50,), generator=generator, device="cpu")] = extreme
    return numbers.to(dtype).to(device)


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors of one dtype and shape hold the same bits.

    Args:
        x: A tensor.
        y: Another tensor.
    """
    return torch.equal(x.view(torch.uint8), y.view(torch.uint8))


def _inputs(operation: Operation, m: int, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Tensor]:
    extremes = FINITE if operation.finite else EXTREMES
    first, second = (difficult_numbers(GROUPS * m, dtype, device, seed + i, extremes) for i in range(2))
    floats = iter((first, second))
    return [next(floats) if kind == "float" else second > 0 for kind in operation.inputs]
