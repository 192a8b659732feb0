"""The highest of a long row of scores: a sample brackets the last of them, and only what lies between is sorted out."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers.cpu.intrinsics import NUMBER, collect, compiled, flag
from nxm_hf.solvers.cpu.llvm_vectors import LANES
from nxm_hf.solvers.cpu.threads import in_turns, pieces

SAMPLE = (2**12, 2**16)  # at least and at most; between, a share of the row
SHARE = 128


def keep_highest(scores: Tensor, count: int, mask: Tensor) -> None:
    """Flag the `count` highest of a row of fp32 scores; of equal scores the first."""
    bits, flags = scores.detach().view(torch.int32).numpy(), mask.view(torch.int8).numpy()
    threshold = _nth_highest(bits, count)

    def flag_part(begin: int, end: int) -> int:
        return flagging()(begin, end, bits.ctypes.data, flags.ctypes.data, threshold)

    reach = sum(_over(flag_part, bits))
    rest = len(bits) // LANES * LANES
    flags[rest:] = ordered(bits[rest:]) >= threshold
    surplus = reach + int(flags[rest:].sum()) - count
    if surplus:
        equal = np.flatnonzero(bits.view(np.float32) == _float(threshold))
        flags[equal[len(equal) - surplus :]] = 0


def _nth_highest(bits: np.ndarray, count: int) -> int:
    low, high = _bracket(bits, count)
    inside: list[np.ndarray] = []

    def collect_part(begin: int, end: int) -> int:
        room = np.empty(LANES * (end - begin), np.int32)
        found = collecting()(begin, end, bits.ctypes.data, room.ctypes.data, low, high)
        inside.append(room[: found & 0xFFFFFFFF])
        return found >> 32

    rest = ordered(bits[len(bits) // LANES * LANES :])
    above = sum(_over(collect_part, bits)) + int((rest > high).sum())
    between = np.concatenate([*inside, rest[(rest >= low) & (rest <= high)]])
    place = len(between) - (count - above)
    if not 0 <= place < len(between):  # the sample misled
        between, place = ordered(bits), len(bits) - count
    between.partition(place)
    return int(between[place])


def _bracket(bits: np.ndarray, count: int) -> tuple[int, int]:
    """Bounds that the `count`-th highest is very likely between: what a sample says, and three deviations more."""
    size = min(max(len(bits) // SHARE, SAMPLE[0]), SAMPLE[1])
    sample = np.sort(ordered(bits[:: max(len(bits) // size, 1)]))
    share = 1 - count / len(bits)
    place, spread = len(sample) * share, 3 * (len(sample) * share * (1 - share)) ** 0.5 + 2
    low, high, limits = int(place - spread), int(place + spread), np.iinfo(np.int32)
    least, most = low < 0, high >= len(sample)
    return limits.min if least else int(sample[low]), limits.max if most else int(sample[high])


def _over(act: Callable[[int, int], int], bits: np.ndarray) -> list[int]:
    """What `act` returns for ranges of the row, counted in sixteens."""
    return in_turns([partial(act, *ends) for ends in pieces(len(bits) // LANES, LANES)], len(bits))


def ordered(bits: np.ndarray) -> np.ndarray:
    """Whole numbers that order like the floats with these bits, and are equal for -0.0 and +0.0."""
    sign = bits >> np.int32(31)
    return ((bits & np.int32(0x7FFFFFFF)) ^ sign) - sign


def _float(key: int) -> np.float32:
    """The float that `ordered` makes this number of."""
    return np.int32(key if key >= 0 else -(2**31) - key).view(np.float32)


@cache
def collecting() -> Callable[..., int]:
    """`run(first, last, scores, room, low, high)`: `rows.collect`, all between in one run."""

    def run(first, last, scores, room, low, high):
        size, above = 0, 0
        for at in range(first * LANES, last * LANES, LANES):
            found = collect(scores, at, room + 4 * size, low, high)
            size += found & 0xFFFFFFFF
            above += found >> 32
        return above << 32 | size

    return compiled(run, NUMBER(*[NUMBER] * 6))


@cache
def flagging() -> Callable[..., int]:
    """`run(first, last, scores, flags, threshold)`: `rows.flag`."""

    def run(first, last, scores, flags, threshold):
        reach = 0
        for at in range(first * LANES, last * LANES, LANES):
            reach += flag(scores, at, flags, threshold)
        return reach

    return compiled(run, NUMBER(*[NUMBER] * 5))
