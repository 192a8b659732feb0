"""Operations on whole weights: in one pass if a backend has a kernel, else step by step in torch.

Both give the same bits: each kernel is tested against the torch form before it is used. If a NaN raises an error,
tensors may be partly overwritten.
"""

import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from nxm_hf.solvers import choose, cpu, gpu
from nxm_hf.solvers.base import (
    MaskPattern,
    Operation,
    PatternLike,
    SharedPattern,
    SizedPattern,
    integer_view,
    is_nm,
    is_shared,
    is_transposable,
    raise_nan,
    refuse_nan,
)
from nxm_hf.solvers.nearest import NEAREST, project_tiles, supports_projection
from nxm_hf.solvers.self_test import Counts, Run

PART = 2**20  # entries processed at a time: they fit in a CPU's last cache, and the cost of calls is small
ANY_FOUR = Counts(0, 4)  # the pattern of the kernel that reads each entry alone


def magnitude_mask(weight: Tensor, pattern: MaskPattern) -> Tensor:
    """Return the mask of |weight|.

    Args:
        weight: A weight whose shape fits the pattern.
        pattern: The pattern of the mask.

    Raises:
        ValueError: The weight holds a NaN.
    """
    weight = weight.contiguous()
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    if kernel := kernel_of(MAGNITUDE_MASK, pattern, weight, mask):
        run_refusing_nan(kernel, weight, mask)
        return mask
    if cpu.supports_magnitudes(weight, pattern):
        if cpu.fill_magnitude_mask(weight, pattern, mask) < 0:
            refuse_nan(weight)
        return mask
    return pattern.mask(weight.abs())


def nearest_mask(weight: Tensor, pattern: MaskPattern) -> Tensor:
    """Return the mask that keeps the largest sum of squares.

    Args:
        weight: A weight whose shape fits the pattern.
        pattern: The pattern of the mask.

    Raises:
        ValueError: The weight holds a NaN.
    """
    solve_nearest = NEAREST[pattern.kind]
    if solve_nearest is None or not weight.numel():
        return magnitude_mask(weight, pattern)
    return solve_nearest(weight.contiguous(), pattern)


def project(weight: Tensor, pattern: MaskPattern, out: Tensor | None = None) -> Tensor:
    """Return the nearest weight that holds the pattern; its zeros are all +0.0.

    Args:
        weight: A weight whose shape fits the pattern.
        pattern: The pattern to hold.
        out: Where to write it; by default a new tensor.

    Raises:
        ValueError: The weight holds a NaN, or `out` does not fit.
    """
    contiguous = weight.contiguous()
    result = torch.empty_like(contiguous) if out is None else _fitting(out, weight)
    if kernel := kernel_of(PROJECT, pattern, contiguous, result):
        run_refusing_nan(kernel, contiguous, result)
        return result
    if is_transposable(pattern) and supports_projection(contiguous, pattern):
        project_tiles(contiguous, pattern, result)
        return result
    return kept(contiguous, nearest_mask(contiguous, pattern), result)


def _fitting(out: Tensor, weight: Tensor) -> Tensor:
    """Return a tensor if a weight's numbers can be written into it; raise ValueError otherwise."""
    expected, given = ((x.dtype, tuple(x.shape), x.device) for x in (weight, out))
    if expected != given or not out.is_contiguous():
        layout = "" if out.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"out is {given[0]} of shape {given[1]} on {given[2]}{layout}; it needs a contiguous {expected[0]} of "
            f"shape {expected[1]} on {expected[2]}. Write torch.empty_like(weight), or leave out= away."
        )
    return out.detach()


def kept(weight: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Write the kept entries of a weight into a tensor, with +0.0 elsewhere and for -0.0. Return that tensor.

    Args:
        weight: The weight.
        mask: True where an entry is kept.
        out: A contiguous tensor like the weight; it may be the weight itself.
    """
    if kernel := kernel_of(KEPT, ANY_FOUR, weight, mask, out):
        kernel(weight, mask, out)
        return out
    if out is not weight:
        out.copy_(weight)
    keep(out, mask)
    return out


def keep(weight: Tensor, mask: Tensor) -> None:
    """Set what the mask prunes to +0.0, in place. Kept entries of -0.0 become +0.0, too.

    Args:
        weight: The weight to prune.
        mask: True where a weight is kept.
    """
    if kernel := kernel_of(KEEP, ANY_FOUR, weight, mask):
        kernel(weight, mask)
        return
    # A product with the mask's bytes takes a sixth of the time of `where` or `masked_fill`, which branch at each entry.
    weight.mul_(mask.view(torch.uint8)).add_(0.0)
    if weight.sum().isnan():  # a pruned infinity, times 0
        weight.masked_fill_(~mask, 0.0)


def mask_change(before: Tensor, after: Tensor) -> Tensor:
    """Return how a mask changed: how many entries came in, how many left, and how many were kept before.

    Args:
        before: The old mask.
        after: The new mask.
    """
    changed, old, new = (torch.count_nonzero(x) for x in (before ^ after, before, after))
    return torch.stack([(changed + new - old) // 2, (changed + old - new) // 2, old]).cpu()


def mask_change_of_counts(changed: int, old: int, new: int) -> Tensor:
    """Return what `mask_change` does, from numbers of entries.

    Args:
        changed: How many entries differ.
        old: How many the old mask keeps.
        new: How many the new mask keeps.
    """
    return torch.tensor([(changed + new - old) // 2, (changed + old - new) // 2, old])


def remask(weight: Tensor, mask: Tensor, dense: Tensor, pattern: MaskPattern) -> Tensor:
    """Compute a new mask from |W|, then set D = W and W = W * mask, all in place.

    Args:
        weight: W, dense.
        mask: The old mask, which is overwritten.
        dense: D, the copy of the dense weight, which is overwritten.
        pattern: The pattern of the new mask.

    Returns:
        How the mask changed; see `mask_change`.

    Raises:
        ValueError: The weight holds a NaN.
    """
    if kernel := kernel_of(REMASK, pattern, weight, mask, dense):
        counts = run_refusing_nan(kernel, weight, mask, dense)
        return mask_change_of_counts(counts & 0xFFFFFFFF, counts >> 32, pattern.kept(weight.shape))
    new = magnitude_mask(weight, pattern)
    change = mask_change(mask, new)
    mask.copy_(new)
    dense.copy_(weight)
    weight.mul_(mask.view(torch.uint8))
    return change


def admm_update(
    weight: Tensor, r: Tensor, pattern: SizedPattern, first: bool, dual: bool, scale: float = 1.0
) -> Tensor | None:
    """Do an update of ADMM on R = Z - U, in place: V = W + U, then R = V in the nearest mask of V and -V elsewhere.

    Args:
        weight: W.
        r: R. Its nearest mask is the mask of Z.
        pattern: The pattern of the masks.
        first: Whether this is the first update, when there is no U, and R holds nothing yet.
        dual: Whether there is a U. Without it, R = Z, which is 0 where it is pruned.
        scale: The factor of the new U, at most 1. With another factor than 1, R = -scale * V where it is pruned.

    Returns:
        How the mask changed, see `mask_change`; None for the first update.

    Raises:
        ValueError: W or R hold a NaN.
    """
    if is_shared(pattern):
        return _update_part(weight, r, pattern, first, dual, scale)
    kept = pattern.kept(weight.shape)
    if not weight.numel():
        return None if first else mask_change_of_counts(0, kept, kept)
    if dual and not first and scale == 1 and (kernel := kernel_of(ADMM_UPDATE, pattern, weight, r)):
        return mask_change_of_counts(run_refusing_nan(kernel, weight, r), kept, kept)
    parts = _parts(pattern, weight, r)
    longest, _ = parts[0]
    buffers = _Buffers.like(longest)
    changed = sum(_update(w, z_u, pattern, first, dual, scale, buffers.narrowed(len(w))) for w, z_u in parts)
    return None if first else mask_change_of_counts(changed, kept, kept)


def _update_part(
    weight: Tensor, r: Tensor, pattern: SharedPattern, first: bool, dual: bool, scale: float
) -> Tensor | None:
    """Do `admm_update` on a part of a weight, whose masks several processes solve together. It may be empty."""
    before = None if first else pattern.nearest(r)
    r.copy_(weight if before is None or not dual else weight - r.masked_fill(before, 0.0))
    after = pattern.nearest(r)
    r.copy_(torch.where(after, r, r * -scale) if dual else r.masked_fill(~after, 0.0))
    return None if before is None else mask_change(before, after)


def _parts(pattern: PatternLike, weight: Tensor, r: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return parts of the tensors that fit in a core's cache, where each part has a mask of its own."""
    contiguous = all(x.device.type == "cpu" and x.is_contiguous() for x in (weight, r))
    if not is_nm(pattern) or not contiguous:
        return [(weight, r)]
    total, unit = weight.numel(), 8 * pattern.m
    # Parts of one size: a short last one would cost as much as a long one.
    size = math.ceil(total / math.ceil(total / PART) / unit) * unit
    return list(zip(*(x.view(-1).split(size) for x in (weight, r)), strict=True))


class _Buffers(NamedTuple):
    """Buffers that all parts share: memory that is written for the first time costs more than the writing."""

    numbers: Tensor
    before: Tensor
    after: Tensor
    bytes: Tensor

    @classmethod
    def like(cls, part: Tensor) -> "_Buffers":
        before, after, numbers = (
            torch.empty(part.shape, dtype=dtype, device=part.device) for dtype in (torch.bool, torch.bool, torch.int8)
        )
        return cls(torch.empty_like(part), before, after, numbers)

    def narrowed(self, count: int) -> "_Buffers":
        return self if self.numbers.shape[:1] == (count,) else _Buffers(*(x[:count] for x in self))


def _update(
    weight: Tensor, r: Tensor, pattern: PatternLike, first: bool, dual: bool, scale: float, buffers: _Buffers
) -> int:
    """Do `admm_update` on a part. Return how many entries of the mask changed."""
    if not first:
        _write_nearest_mask(r, pattern, buffers.before, buffers.numbers)
    if first or not dual:
        r.copy_(weight)
    else:
        _zero_where(r, torch.sub(buffers.before.view(torch.int8), 1, out=buffers.bytes), buffers.numbers)  # now -U
        torch.sub(weight, r, out=r)
    _write_nearest_mask(r, pattern, buffers.after, buffers.numbers)
    after = buffers.after.view(torch.int8)
    if dual:
        signs = torch.add(after, after, out=buffers.bytes).sub_(1)  # 1 or -1
        factors = buffers.numbers.copy_(signs)
        r.mul_(factors if scale == 1 else factors.clamp_(min=-scale))
    else:
        _zero_where(r, torch.neg(after, out=buffers.bytes), buffers.numbers)
    return 0 if first else _count(buffers.before.bitwise_xor_(buffers.after))


def _write_nearest_mask(weight: Tensor, pattern: PatternLike, mask: Tensor, magnitudes: Tensor) -> None:
    if solve_nearest := NEAREST[pattern.kind]:
        mask.copy_(solve_nearest(weight.contiguous(), pattern))
    else:
        refuse_nan(torch.abs(weight, out=magnitudes))
        choose(magnitudes, pattern).fill([magnitudes], pattern, [mask])


def _zero_where(x: Tensor, flags: Tensor, buffer: Tensor) -> None:
    """Set x to +0.0 in place where a flag is 0 and not -1, by an "and" of bits: `where` branches at each entry."""
    bits = integer_view(x)
    bits.bitwise_and_(integer_view(buffer).copy_(flags))


def _count(flags: Tensor) -> int:
    """Return how many flags are set. On a CPU, NumPy takes a fifth of torch's time."""
    return int(numpy.count_nonzero(flags.numpy()) if flags.device.type == "cpu" else flags.count_nonzero())


# Kernels of these operations


def kernel_of(operation: Operation, pattern: PatternLike, *tensors: Tensor) -> Run | None:
    """Return the kernel that does an operation in one pass, or None where torch has to do it.

    Args:
        operation: The operation.
        pattern: The pattern of the masks; `ANY_FOUR` for an operation that reads each entry alone.
        *tensors: The inputs of the operation.
    """
    for backend in (cpu.BACKEND, gpu.BACKEND):
        if is_nm(pattern) and backend.supports(operation, pattern, *tensors):
            return backend.runner(operation, pattern)
    return None


def run_refusing_nan(kernel: Run, *tensors: Tensor, **factor: float) -> int:
    """Run a kernel and return its count.

    Args:
        kernel: The kernel.
        *tensors: The inputs of its operation.
        **factor: `factor=`, if the operation takes one.

    Raises:
        ValueError: It met a NaN.
    """
    count = kernel(*tensors, **factor)
    if count < 0:
        for tensor in tensors:
            refuse_nan(tensor)
        raise_nan("A weight or the state of its method held a NaN")  # that was overwritten
    return count


# The torch forms as kernels have them: results are written into tensors, and a count is returned. Self-tests call
# them under `reference_only`, where the functions above use no kernel.


def _magnitude_mask_in_torch(pattern: MaskPattern, weight: Tensor, out: Tensor) -> int:
    out.copy_(magnitude_mask(weight, pattern))
    return 0


def _project_in_torch(pattern: MaskPattern, weight: Tensor, out: Tensor) -> int:
    out.copy_(project(weight, pattern))
    return 0


def _keep_in_torch(_: PatternLike, weight: Tensor, mask: Tensor) -> int:
    keep(weight, mask)
    return 0


def _kept_in_torch(_: PatternLike, weight: Tensor, mask: Tensor, out: Tensor) -> int:
    kept(weight, mask, out)
    return 0


def _remask_in_torch(pattern: MaskPattern, weight: Tensor, mask: Tensor, dense: Tensor) -> int:
    """Return how many entries changed, plus 2**32 times how many were kept before."""
    came, left, old = remask(weight, mask, dense, pattern).tolist()
    return came + left | old << 32


def _admm_update_in_torch(pattern: MaskPattern, weight: Tensor, r: Tensor) -> int:
    """Return how many entries of the mask changed."""
    change = admm_update(weight, r, pattern, first=False, dual=True)
    return 0 if change is None else int(change[:2].sum())


MAGNITUDE_MASK = Operation("magnitude_mask", _magnitude_mask_in_torch, ("float", "mask"))
PROJECT = Operation("project", _project_in_torch, ("float", "float"))
KEEP = Operation("keep", _keep_in_torch, ("float", "mask"), in_place=True, refuses_nan=False)
KEPT = Operation("kept", _kept_in_torch, ("float", "mask", "float"), refuses_nan=False)
REMASK = Operation("remask", _remask_in_torch, ("float", "mask", "float"), in_place=True, finite=True)
ADMM_UPDATE = Operation("admm_update", _admm_update_in_torch, ("float", "float"), in_place=True, finite=True)
