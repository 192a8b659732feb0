"""The count-th highest of a long row of scores, and the mask of all from there up."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from numba import types
from torch import Tensor

from nxm_hf.solvers.fast.inlining import NUMBER, compiled, helper
from nxm_hf.solvers.fast.regions import in_turns, pieces

SAMPLE = 2**12
ROW = types.int32[::1]


def keep_highest(scores: Tensor, count: int, mask: Tensor) -> None:
    """Flag the `count` highest of a row of fp32 scores; of equal scores the first."""
    bits, flags = scores.detach().view(torch.int32).numpy(), mask.view(torch.int8).numpy()
    threshold = _nth_highest(bits, count)

    def flag(begin: int, end: int) -> int:
        return flag_from()(bits[begin:end], threshold, flags[begin:end])

    reach = sum(in_turns([partial(flag, *ends) for ends in pieces(len(bits))], len(bits)))
    if reach > count:
        drop_last_equals()(bits, threshold, flags, reach - count)


def _nth_highest(bits: np.ndarray, count: int) -> int:
    """What is likely just above and below it is read from a sample; only what lies between is sorted out."""
    low, high = _bracket(bits, count)
    ranges = pieces(len(bits))
    inside = [np.empty(end - begin + 1, np.int32) for begin, end in ranges]

    def collect_from(place: int) -> int:
        begin, end = ranges[place]
        return collect()(bits[begin:end], low, high, inside[place])

    found = in_turns([partial(collect_from, place) for place in range(len(ranges))], len(bits))
    above, within = sum(one >> 32 for one in found), [one & 0xFFFFFFFF for one in found]
    left, total = count - above, sum(within)
    if not 0 < left <= total:  # the sample misled
        return int(np.partition(ordered(bits), len(bits) - count)[len(bits) - count])
    between = np.concatenate([room[:size] for room, size in zip(inside, within, strict=True)])
    between.partition(total - left)
    return int(between[total - left])


def _bracket(bits: np.ndarray, count: int) -> tuple[int, int]:
    sample = np.sort(ordered(bits[:: max(len(bits) // SAMPLE, 1)]))
    share = count / len(bits)
    place, spread = len(sample) * (1 - share), 4 * (len(sample) * share * (1 - share)) ** 0.5 + 2
    low, high = int(place - spread), int(place + spread)
    limits = np.iinfo(np.int32)
    return (
        int(sample[low]) if low >= 0 else limits.min,
        int(sample[high]) if high < len(sample) else limits.max,
    )


def ordered(bits: np.ndarray) -> np.ndarray:
    """Whole numbers that order like the floats with these bits, and are equal for -0.0 and +0.0."""
    sign = bits >> np.int32(31)
    return ((bits & np.int32(0x7FFFFFFF)) ^ sign) - sign


@helper
def _key(bits):
    sign = bits >> np.int32(31)
    return ((bits & np.int32(0x7FFFFFFF)) ^ sign) - sign


@cache
def collect() -> Callable:
    """`run(bits, low, high, inside)`: write what lies between, ends included; how many of those, and above, in one."""

    def run(bits, low, high, inside):
        size, above = 0, 0
        for i in range(len(bits)):
            key = _key(bits[i])
            inside[size] = key
            size += (key >= low) & (key <= high)
            above += key > high
        return above << 32 | size

    return compiled(run, NUMBER(ROW, types.int32, types.int32, ROW))


@cache
def flag_from() -> Callable:
    """`run(bits, threshold, flags)`: flag what reaches it; how many."""

    def run(bits, threshold, flags):
        reach = 0
        for i in range(len(bits)):
            flags[i] = _key(bits[i]) >= threshold
            reach += flags[i]
        return reach

    return compiled(run, NUMBER(ROW, types.int32, types.int8[::1]))


@cache
def drop_last_equals() -> Callable:
    """`run(bits, threshold, flags, surplus)`: drop so many of what equals it, from the end."""

    def run(bits, threshold, flags, surplus):
        i = len(bits) - 1
        while surplus:
            if _key(bits[i]) == threshold:
                flags[i] = 0
                surplus -= 1
            i -= 1
        return 0

    return compiled(run, NUMBER(ROW, types.int32, types.int8[::1], NUMBER))
