"""Operations of masked training: a dense weight D, a mask, and W, which is D with its pruned entries scaled by a gain.

As in `weight_ops`, each is one pass over memory where a backend has a kernel for it, with the bits of its torch form.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nxm_hf.solvers.base import MaskPattern, Operation, PatternLike
from nxm_hf.solvers.weight_ops import (
    ANY_FOUR,
    kernel_of,
    magnitude_mask,
    mask_change,
    mask_change_of_counts,
    remask,
    run_refusing_nan,
)

FACTORS = (0.0, 0.3, 3.0)


def scale_pruned(x: Tensor, mask: Tensor, factor: float = 0.0) -> bool:
    """Multiply pruned entries by a factor, in place. A product by 0 keeps the sign of its zero.

    Args:
        x: A weight or a gradient.
        mask: True where an entry is kept.
        factor: The factor.

    Returns:
        True if the pass has seen that the result holds no NaN; False if it has not looked, or found one.
    """
    if kernel := kernel_of(SCALE, ANY_FOUR, x, mask):
        return kernel(x, mask, factor=factor) == 0
    _scale_in_torch(x, mask, factor)
    return False


def pull_pruned(x: Tensor, mask: Tensor, dense: Tensor, factor: float) -> None:
    """Add pruned entries of D times a factor, in place.

    Args:
        x: A gradient, or D itself.
        mask: True where an entry is kept.
        dense: D.
        factor: The factor.
    """
    if kernel := kernel_of(PULL, ANY_FOUR, x, mask, dense):
        kernel(x, mask, dense, factor=factor)
        return
    x.add_(pruned_part(dense, mask), alpha=factor)


def store_dense(weight: Tensor, mask: Tensor, dense: Tensor, gain: float) -> None:
    """Set D = W, then scale pruned entries of W, both in place.

    Args:
        weight: W, dense; it is scaled.
        mask: True where an entry is kept.
        dense: D, which is overwritten.
        gain: The factor of pruned entries.
    """
    if kernel := kernel_of(STORE, ANY_FOUR, weight, mask, dense):
        kernel(weight, mask, dense, factor=gain)
        return
    dense.copy_(weight)
    _scale_in_torch(weight, mask, gain)


def show_masked(dense: Tensor, mask: Tensor, weight: Tensor, gain: float) -> None:
    """Set W to D with its pruned entries scaled.

    Args:
        dense: D.
        mask: True where an entry is kept.
        weight: W, which is overwritten.
        gain: The factor of pruned entries.
    """
    if kernel := kernel_of(SHOW, ANY_FOUR, dense, mask, weight):
        kernel(dense, mask, weight, factor=gain)
        return
    weight.copy_(dense)
    _scale_in_torch(weight, mask, gain)


def remask_and_store(weight: Tensor, mask: Tensor, dense: Tensor, pattern: MaskPattern, gain: float) -> Tensor:
    """Compute a new mask from |W|, then do `store_dense`, all in place.

    Args:
        weight: W, dense; it is scaled.
        mask: The old mask, which is overwritten.
        dense: D, which is overwritten.
        pattern: The pattern of the new mask.
        gain: The factor of pruned entries.

    Returns:
        How the mask changed; see `mask_change`.

    Raises:
        ValueError: The weight holds a NaN.
    """
    if gain == 0:
        return remask(weight, mask, dense, pattern)
    return _remask(REMASK_WITH_GAIN, store_dense, weight, mask, dense, pattern, gain)


def remask_and_show(dense: Tensor, mask: Tensor, weight: Tensor, pattern: MaskPattern, gain: float) -> Tensor:
    """Compute a new mask from |D|, then do `show_masked`.

    Args:
        dense: D.
        mask: The old mask, which is overwritten.
        weight: W, which is overwritten.
        pattern: The pattern of the new mask.
        gain: The factor of pruned entries.

    Returns:
        How the mask changed; see `mask_change`.

    Raises:
        ValueError: D holds a NaN.
    """
    return _remask(REMASK_FROM, show_masked, dense, mask, weight, pattern, gain)


def _remask(
    operation: Operation,
    write: Callable[[Tensor, Tensor, Tensor, float], None],
    source: Tensor,
    mask: Tensor,
    out: Tensor,
    pattern: MaskPattern,
    gain: float,
) -> Tensor:
    if kernel := kernel_of(operation, pattern, source, mask, out):
        counts = run_refusing_nan(kernel, source, mask, out, factor=gain)
        return mask_change_of_counts(counts & 0xFFFFFFFF, counts >> 32, pattern.kept(source.shape))
    new = magnitude_mask(source, pattern)
    change = mask_change(mask, new)
    mask.copy_(new)
    write(source, mask, out, gain)
    return change


def pruned_part(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the weight where the mask prunes, and zero elsewhere.

    Args:
        weight: A tensor.
        mask: True where an entry is kept.
    """
    return weight * (~mask).view(torch.uint8)


def _scale_in_torch(x: Tensor, mask: Tensor, factor: float) -> None:
    if factor == 0:
        x.mul_(mask.view(torch.uint8))
    elif factor <= 1:
        x.mul_(mask.to(x.dtype).clamp_(min=factor))
    else:
        x.mul_((~mask).to(x.dtype).mul_(factor).clamp_(min=1))


# The torch forms as kernels have them; see `weight_ops`.


def _scale_and_look(_: PatternLike, x: Tensor, mask: Tensor, factor: float) -> int:
    _scale_in_torch(x, mask, factor)
    return -1 if bool(x.isnan().any()) else 0


def _pull_in_torch(_: PatternLike, x: Tensor, mask: Tensor, dense: Tensor, factor: float) -> int:
    pull_pruned(x, mask, dense, factor)
    return 0


def _store_in_torch(_: PatternLike, weight: Tensor, mask: Tensor, dense: Tensor, factor: float) -> int:
    store_dense(weight, mask, dense, factor)
    return 0


def _show_in_torch(_: PatternLike, dense: Tensor, mask: Tensor, weight: Tensor, factor: float) -> int:
    show_masked(dense, mask, weight, factor)
    return 0


def _remask_with_gain_in_torch(pattern: MaskPattern, weight: Tensor, mask: Tensor, dense: Tensor, factor: float) -> int:
    return _counts_of(_remask(REMASK_WITH_GAIN, store_dense, weight, mask, dense, pattern, factor))


def _remask_from_in_torch(pattern: MaskPattern, dense: Tensor, mask: Tensor, weight: Tensor, factor: float) -> int:
    return _counts_of(remask_and_show(dense, mask, weight, pattern, factor))


def _counts_of(change: Tensor) -> int:
    """Return how many entries changed, plus 2**32 times how many were kept before."""
    came, left, old = change.tolist()
    return came + left | old << 32


_THREE = ("float", "mask", "float")
SCALE = Operation("scale", _scale_and_look, ("float", "mask"), in_place=True, finite=True, factors=FACTORS)
PULL = Operation("pull", _pull_in_torch, _THREE, in_place=True, refuses_nan=False, finite=True, factors=FACTORS)
STORE = Operation("store", _store_in_torch, _THREE, in_place=True, refuses_nan=False, finite=True, factors=FACTORS)
SHOW = Operation("show", _show_in_torch, _THREE, in_place=True, refuses_nan=False, finite=True, factors=FACTORS)
REMASK_WITH_GAIN = Operation(
    "remask_with_gain", _remask_with_gain_in_torch, _THREE, in_place=True, finite=True, factors=FACTORS
)
REMASK_FROM = Operation("remask_from", _remask_from_in_torch, _THREE, in_place=True, finite=True, factors=FACTORS)
