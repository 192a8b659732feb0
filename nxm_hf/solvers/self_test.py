"""Trials: whether a fast kernel does here what plain torch does, on numbers chosen to be difficult.

A compiler may not know this machine, or may take our code for something else. So every kernel is tried once before it
is used, and where it fails, or gives one wrong bit, torch does its work.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nxm_hf.solvers.nm_sort import by_sorting

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # that there are kernels for
EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 6e4, float("inf"), float("-inf"))
GROUPS = 256  # in the trial of a kernel of groups
Run = Callable[..., int]

logger = logging.getLogger("nxm_hf")


@dataclass(frozen=True)
class Counts:
    """All that a kernel asks of a pattern."""

    n: int
    m: int
    kind: ClassVar[str] = "nm"


def passes(name: str, trial: Callable[..., bool], *words: Any) -> bool:
    """Whether a kernel passes its trial; where it does not, it is said once, by who asks once."""
    try:
        reason = None if trial(*words) else "what it gave is not what torch gives"
    except Exception as problem:  # compilers fail in many ways
        reason = repr(problem)
    if reason:
        logger.warning("The fast kernel %s does not work here, and torch does its work: %s.", name, reason)
    return reason is None


def task_is_right(run: Run, task: str, pattern: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether `run(*tensors)` does the task to tensors and returns its count: -1 where there is a NaN."""
    for seed in range(2):
        ours = _tensors(task, pattern.m, dtype, device, seed)
        theirs = [tensor.clone() for tensor in ours]
        if run(*ours) != TASKS[task](pattern, *theirs) or not all(map(_same, ours, theirs)):
            return False
    if task in REFUSING:
        ours[0][-1] = torch.nan
        return run(*ours) == -1
    return True


def tiles_are_right(run: Run, solver: Callable[[Tensor, Any], Tensor], pattern: Any) -> bool:
    """Whether `run(scores, mask)` finds masks as good as a solver does; of zeros and beside a giant, too."""
    n, m = pattern.n, pattern.m
    scores = numbers(17 * m * 2 * m, torch.float32, "cpu", 0, ()).abs().view(2 * m, 17 * m)
    scores[:m, :m], scores[m, m] = 0, 1e30
    mask = torch.zeros(scores.shape, dtype=torch.bool, device="cpu")
    run(scores, mask)
    found, best = (each.view(2, m, 17, m).transpose(1, 2) for each in (mask, solver(scores, pattern)))
    cut = scores.double().view(2, m, 17, m).transpose(1, 2)
    exact = (found.sum(2) == n).all() and (found.sum(3) == n).all()
    return bool(exact and ((cut * found).sum((2, 3)) >= (cut * best).sum((2, 3)) * (1 - 1e-6)).all())


def prices_are_right(prices: Callable[..., tuple[Tensor, ...]], n: int, m: int, device: torch.device) -> bool:
    """Whether `prices(q, n)` settles what it says; then the mask of what is above both prices is the best."""
    q = numbers(m * m * 9, torch.float32, device, 0, ()).abs().mul_(2**20).int().view(m, m, 9)
    rows, cols, settled = prices(q, n)
    mask = q - rows[:, None] > cols
    right = (mask.sum(0) == n).all(0) & (mask.sum(1) == n).all(0)
    return bool(torch.equal(right, settled) and settled.sum() > 4)


def row_is_right(run: Run) -> bool:
    """Whether `run(scores, count, mask)` finds the highest of a row."""
    row = numbers(10_007, torch.float32, "cpu", 0, EXTREMES)
    mask = torch.zeros(row.shape, dtype=torch.bool, device="cpu")
    for count in (1, 5000, 10_000):
        run(row, count, mask)
        if not torch.equal(mask, by_sorting(row, Counts(count, len(row)))):
            return False
    return True


def numbers(
    count: int, dtype: torch.dtype, device: torch.device | str, seed: int, extremes: tuple[float, ...]
) -> Tensor:
    """Random numbers, a third of them rounded, which makes equals and zeros of both signs; and extremes among them."""
    pick = torch.Generator("cpu").manual_seed(seed)
    found = torch.randn(count, generator=pick, device="cpu")
    found[: count // 3] = (found[: count // 3] * 2).round() / 2
    for extreme in extremes:
        found[torch.randint(count, (count // 50,), generator=pick, device="cpu")] = extreme
    return found.to(dtype).to(device)


def _tensors(task: str, m: int, dtype: torch.dtype, device: torch.device | str, seed: int) -> list[Tensor]:
    """What a task works on. Where infinities would meet in a difference or a product, there are none."""
    extremes = EXTREMES[:-2] if task in ("admm_update", "remask") else EXTREMES
    first, other = (numbers(GROUPS * m, dtype, device, seed + i, extremes) for i in range(2))
    mask = other > 0
    return {
        "admm_update": [first, other],
        "project": [first, other],
        "remask": [first, mask, other],
    }.get(task, [first, mask])


def _mask(pattern: Any, scores: Tensor, out: Tensor) -> int:
    out.copy_(by_sorting(scores, pattern))
    return 0


def _magnitude_mask(pattern: Any, weight: Tensor, out: Tensor) -> int:
    return _mask(pattern, weight.abs(), out)


def _project(pattern: Any, weight: Tensor, out: Tensor) -> int:
    out.copy_(torch.where(by_sorting(weight.abs(), pattern), weight, 0) + 0)
    return 0


def _admm_update(pattern: Any, weight: Tensor, r: Tensor) -> int:
    before = by_sorting(r.abs(), pattern)
    v = weight - torch.where(before, 0, r)
    mask = by_sorting(v.abs(), pattern)
    r.copy_(torch.where(mask, v, -v))
    return int((before ^ mask).sum())


def _remask(pattern: Any, weight: Tensor, mask: Tensor, dense: Tensor) -> int:
    new = by_sorting(weight.abs(), pattern)
    found = int((mask ^ new).sum()) | int(mask.sum()) << 32
    mask.copy_(new)
    dense.copy_(weight)
    weight.mul_(new)
    return found


def _keep(pattern: Any, weight: Tensor, mask: Tensor) -> int:
    weight.copy_(torch.where(mask, weight, 0) + 0)
    return 0


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


IN_PLACE = ("admm_update", "remask", "keep")
REFUSING = ("magnitude_mask", "project", "admm_update", "remask")
TASKS: dict[str, Run] = {
    "mask": _mask,
    "magnitude_mask": _magnitude_mask,
    "project": _project,
    "admm_update": _admm_update,
    "remask": _remask,
    "keep": _keep,
}
