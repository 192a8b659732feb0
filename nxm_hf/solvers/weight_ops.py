"""What methods and patterns do to a whole weight: in one pass where a fast tier suits, else step by step in torch.

Both give the same bits. Where a NaN is refused, they may have been half-way through.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers import choose, cpu, gpu
from nxm_hf.solvers.self_test import Counts, Run

PART = 2**20  # weights gone through at a time: they stay in a CPU's last cache, and calls cost little beside them
FOURS = Counts(0, 4)  # for what looks at each entry alone
FLAGS = (torch.bool, torch.bool, torch.int8)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def refuse_nan(scores: Tensor) -> None:
    """A NaN has no place in an order. A sum is NaN if any score is, and is much cheaper than `isnan`."""
    if scores.is_floating_point() and scores.sum().isnan() and (count := int(scores.isnan().sum())):
        _refuse(f"Scores hold {count} NaN of {scores.numel()}")


def _refuse(found: str) -> None:
    raise ValueError(
        f"{found}; a mask needs numbers. "
        "Look for the step that made them: a learning rate too high, or an fp16 overflow."
    )


def largest(weight: Tensor, pattern: Any) -> Tensor:
    """The mask of |weight|."""
    weight = weight.contiguous()
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    if run := _kernel("magnitude_mask", pattern, weight, mask):
        _refusing_nan(run, weight, mask)
        return mask
    return pattern.mask(weight.abs())


def project(weight: Tensor, pattern: Any) -> Tensor:
    """The nearest weight that holds the pattern, as a new tensor whose zeros are all +0.0."""
    row, result = weight.contiguous(), torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    if run := _kernel("project", pattern, row, result):
        _refusing_nan(run, row, result)
        return result
    mask = largest(weight, pattern)
    result = (weight * mask).add_(0)  # -0.0 + 0 is +0.0; a product is three times faster than `where`
    if result.sum().isnan():  # a pruned infinity, times 0
        result = torch.where(mask, weight, 0).add_(0)
    return result


def keep(weight: Tensor, mask: Tensor) -> None:
    """Write true +0.0 where the mask prunes, in place; -0.0 becomes +0.0 everywhere."""
    if run := _kernel("keep", FOURS, weight, mask):
        run(weight, mask)
        return
    # A product with the mask's bytes takes a sixth of the time of `where` or `masked_fill`, which branch at each entry.
    weight.mul_(mask.view(torch.uint8)).add_(0.0)
    if weight.sum().isnan():  # a pruned infinity, times 0
        weight.masked_fill_(~mask, 0.0)


def mask_change(before: Tensor, mask: Tensor) -> Tensor:
    """How a mask changed: entries that came in, those that left, and those kept before."""
    changed, old, new = (torch.count_nonzero(x) for x in (before ^ mask, before, mask))
    return torch.stack([(changed + new - old) // 2, (changed + old - new) // 2, old]).cpu()


def admm_update(weight: Tensor, r: Tensor, pattern: Any, first: bool, dual: bool) -> Tensor | None:
    """With R = Z - U: V = W + U, then R = V where its mask is, and -V elsewhere. How the mask moved, if it was there.

    `first`: there is no U yet. Without `dual` there is none ever, and R = Z.
    """
    if dual and not first and (run := _kernel("admm_update", pattern, weight, r)):
        changed = _refusing_nan(run, weight, r)
        return _moved(changed, pattern.kept(weight.shape), pattern.kept(weight.shape))
    parts = list(_parts(pattern, weight, r))
    work = _Work.like(parts[0][1])
    changed = sum(_update(*part, pattern, first, dual, work.first(len(part[1]))) for part in parts)
    kept = pattern.kept(weight.shape)
    return None if first else _moved(changed, kept, kept)


def _parts(pattern: Any, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors in parts that fit in a core's cache, where a pattern asks nothing of one part about another."""
    if pattern.kind != "nm" or not all(x.device.type == "cpu" and x.is_contiguous() for x in tensors):
        return [tensors]
    rows, total, unit = [x.view(-1) for x in tensors], tensors[0].numel(), 8 * pattern.m
    # Parts of one size: a short last one would cost as much as a long one.
    size = math.ceil(total / math.ceil(total / PART) / unit) * unit
    return zip(*(row.split(size) for row in rows), strict=True) if size < total else [rows]


class _Work(NamedTuple):
    """Room for what is in between: memory that is written for the first time costs more than the writing."""

    numbers: Tensor
    before: Tensor
    after: Tensor
    bytes: Tensor

    @classmethod
    def like(cls, part: Tensor) -> "_Work":
        return cls(torch.empty_like(part), *(torch.empty(part.shape, dtype=x, device=part.device) for x in FLAGS))

    def first(self, count: int) -> "_Work":
        return self if self.numbers.shape[:1] == (count,) else _Work(*(x[:count] for x in self))


def _update(weight: Tensor, r: Tensor, pattern: Any, first: bool, dual: bool, work: _Work) -> int:
    """`admm_update` of a part; how many entries of the mask changed."""
    if not first:
        _mark(r, pattern, work.before, work.numbers)
    if first or not dual:
        r.copy_(weight)
    else:
        _keep_bits(r, torch.sub(work.before.view(torch.int8), 1, out=work.bytes), work.numbers)
        torch.sub(weight, r, out=r)
    _mark(r, pattern, work.after, work.numbers)
    after = work.after.view(torch.int8)
    if dual:
        r.mul_(work.numbers.copy_(torch.add(after, after, out=work.bytes).sub_(1)))  # times 1 or -1
    else:
        _keep_bits(r, torch.neg(after, out=work.bytes), work.numbers)
    return 0 if first else _count(work.before.bitwise_xor_(work.after))


def _mark(weight: Tensor, pattern: Any, mask: Tensor, sizes: Tensor) -> None:
    """Write the mask of |weight|."""
    refuse_nan(torch.abs(weight, out=sizes))
    choose(sizes, pattern).fill([sizes], pattern, [mask])


def _keep_bits(x: Tensor, ones: Tensor, work: Tensor) -> None:
    """+0.0 where `ones` is 0 and not -1, in place, by whole numbers: `where` branches at each entry."""
    kind = BITS[x.dtype.itemsize]
    x.view(kind).bitwise_and_(work.view(kind).copy_(ones))


def _count(flags: Tensor) -> int:
    """How many are set; NumPy finds that in a fifth of torch's time on a CPU."""
    return int(numpy.count_nonzero(flags.numpy()) if flags.device.type == "cpu" else flags.count_nonzero())


def remask(weight: Tensor, mask: Tensor, dense: Tensor, pattern: Any) -> Tensor:
    """A new mask from |W|, in place of the old one; D = W; W = W * mask. How the mask moved."""
    if run := _kernel("remask", pattern, weight, mask, dense):
        found = _refusing_nan(run, weight, mask, dense)
        return _moved(found & 0xFFFFFFFF, found >> 32, pattern.kept(weight.shape))
    new = largest(weight, pattern)
    found = mask_change(mask, new)
    mask.copy_(new)
    dense.copy_(weight)
    weight.mul_(mask.view(torch.uint8))
    return found


def _kernel(task: str, pattern: Any, *tensors: Tensor) -> Run | None:
    """What does a task in one pass, if there is such a thing for these tensors."""
    return next((tier.runner(task, pattern) for tier in (cpu, gpu) if tier.suits(task, pattern, *tensors)), None)


def _refusing_nan(run: Run, *tensors: Tensor) -> int:
    """What a task counts on one weight; a NaN is refused."""
    found = run(*tensors)
    if found < 0:
        for tensor in tensors:
            refuse_nan(tensor)
        _refuse("A weight or the state of its method held a NaN")  # that was written over
    return found


def _moved(changed: int, old: int, new: int) -> Tensor:
    return torch.tensor([(changed + new - old) // 2, (changed + old - new) // 2, old])
