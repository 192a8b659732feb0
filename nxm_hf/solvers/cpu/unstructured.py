"""The highest of a long row of scores: a sample brackets the threshold, and only scores in the bracket are partitioned.

`nxm_hf.solvers.unstructured_threshold` has the same idea in NumPy, for any dtype, and the bracket itself is shared.
This form is for fp32 scores, which it reads as ordered integers. It uses LLVM code and threads, and no temporary
tensors.
"""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers.cpu.intrinsics import NUMBER, collect, compiled, flag
from nxm_hf.solvers.cpu.llvm_vectors import LANES
from nxm_hf.solvers.cpu.threads import pieces, run_jobs
from nxm_hf.solvers.cpu.unstructured_rows import INFINITE
from nxm_hf.solvers.unstructured_threshold import sample_bracket

SAMPLE = (2**12, 2**16)  # least and largest size of the sample; between, it is a share of the row
SHARE = 128
LIMITS = np.iinfo(np.int32)
ALL_BITS, MAGNITUDE = -1, 0x7FFFFFFF  # the bits of a score that a kernel reads


def mark_highest(scores: Tensor, count: int, mask: Tensor, readable: int = ALL_BITS) -> int:
    """Write the mask of the highest scores of a row; of equal scores the first are kept.

    Args:
        scores: A contiguous row of fp32 scores.
        count: How many to keep.
        mask: A contiguous bool row of the same length.
        readable: The bits of a score that are read: all, or `MAGNITUDE`.

    Returns:
        0, or -1 where a magnitude is NaN; the mask is not valid then.
    """
    bits, flags = scores.view(torch.int32).numpy(), mask.view(torch.int8).numpy()
    threshold = _nth_highest(bits, count, readable)
    if threshold is None:
        return -1

    def flag_part(first: int, last: int) -> int:
        return flagging()(first, last, bits.ctypes.data, flags.ctypes.data, threshold, readable)

    reach = sum(_over_sixteens(flag_part, bits))
    rest = len(bits) // LANES * LANES
    flags[rest:] = ordered(bits[rest:] & np.int32(readable)) >= threshold
    surplus = reach + int(flags[rest:].sum()) - count
    if surplus:
        equal = np.flatnonzero((bits & np.int32(readable)).view(np.float32) == _float(threshold))
        flags[equal[len(equal) - surplus :]] = 0
    return 0


def _nth_highest(bits: np.ndarray, count: int, readable: int) -> int | None:
    """Return the key of the `count`-th highest score, or None where a magnitude is NaN."""
    low, high = _bracket(bits, count, readable)
    inside: list[np.ndarray] = []

    def collect_part(first: int, last: int) -> int:
        room = np.empty(LANES * (last - first), np.int32)
        counts = collecting()(first, last, bits.ctypes.data, room.ctypes.data, low, high, readable)
        inside.append(room[: counts & 0xFFFFFFFF])
        return counts >> 32

    rest = ordered(bits[len(bits) // LANES * LANES :] & np.int32(readable))
    above = _over_sixteens(collect_part, bits)
    if any(number < 0 for number in above) or (rest > INFINITE).any():
        return None
    total = sum(above) + int((rest > high).sum())
    between = np.concatenate([*inside, rest[(rest >= low) & (rest <= high)]])
    position = len(between) - (count - total)
    if not 0 <= position < len(between):  # the sample misled
        between, position = ordered(bits & np.int32(readable)), len(bits) - count
    between.partition(position)
    return int(between[position])


def _bracket(bits: np.ndarray, count: int, readable: int) -> tuple[int, int]:
    """Return integers between which the `count`-th highest very likely lies."""
    size = min(max(len(bits) // SHARE, SAMPLE[0]), SAMPLE[1])
    sample = ordered(bits[:: max(len(bits) // size, 1)] & np.int32(readable))
    low, high = sample_bracket(sample, count / len(bits))
    return LIMITS.min if low is None else int(low), LIMITS.max if high is None else int(high)


def _over_sixteens(act: Callable[[int, int], int], bits: np.ndarray) -> list[int]:
    """Call `act` for ranges of the row, counted in sixteens, and return its results."""
    jobs = [partial(act, first, last) for first, last in pieces(len(bits) // LANES, LANES)]
    return run_jobs(jobs, len(bits))


def ordered(bits: np.ndarray) -> np.ndarray:
    """Return integers that are ordered like the floats with these bits, and are equal for -0.0 and +0.0.

    Args:
        bits: The bits of fp32 numbers, as int32.
    """
    sign = bits >> np.int32(31)
    return ((bits & np.int32(0x7FFFFFFF)) ^ sign) - sign


def _float(key: int) -> np.float32:
    """Return the float that `ordered` maps to an integer."""
    return np.int32(key if key >= 0 else -(2**31) - key).view(np.float32)


@cache
def collecting() -> Callable[..., int]:
    """Return `run(first, last, scores, room, low, high, readable)`, which loops `unstructured_rows.collect`.

    It returns how many keys it wrote, plus 2**32 times how many are above; less than 0 if there is a NaN.
    """

    def run(first: int, last: int, scores: int, room: int, low: int, high: int, readable: int) -> int:
        size, above, nans = 0, 0, 0
        for at in range(first * LANES, last * LANES, LANES):
            counts = collect(scores, at, room + 4 * size, low, high, readable)
            size += counts & 0xFFFF
            nans |= counts & 0xFFFF0000
            above += counts >> 32
        return (-1 if nans else above) << 32 | size

    return compiled(run, NUMBER(*[NUMBER] * 7))


@cache
def flagging() -> Callable[..., int]:
    """Return `run(first, last, scores, flags, threshold, readable)`, which loops `unstructured_rows.flag`."""

    def run(first: int, last: int, scores: int, flags: int, threshold: int, readable: int) -> int:
        reach = 0
        for at in range(first * LANES, last * LANES, LANES):
            reach += flag(scores, at, flags, threshold, readable)
        return reach

    return compiled(run, NUMBER(*[NUMBER] * 6))
