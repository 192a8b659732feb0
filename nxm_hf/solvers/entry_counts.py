"""Count the entries of a weight: non-zeros, -0.0, NaN, and groups with too many non-zeros, in one pass over memory.

On a CPU the bits of a part of the weight are compared as integers while the part is in the cache. Elsewhere, and for
other types of numbers, torch counts step by step.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers import cpu
from nxm_hf.solvers.base import NMPattern, Operation, integer_view
from nxm_hf.solvers.self_test import Counts

# NumPy counts 8 to 11 GB/s and a kernel 40, but its import takes as long as counting 7 GB does. A weight of more
# entries than this stands in a model that is larger.
IMPORT_ABOVE = 2**24
IMPORT_ABOVE_IN_ALL = 2**30  # likewise, of entries that are known to come
PART = 2**17  # entries looked at together: their flags and numbers fit into the second cache of a core

_INTEGERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# The types of numbers whose bits are compared, each with the bits of its infinity.
_INFINITY = {
    torch.float32: 0x7F800000,
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float64: 0x7FF0000000000000,
}
_NO_GROUPS = Counts(4, 4)  # for kernels that have no groups to count
_WORDS = {2: np.uint16, 4: np.uint32}  # flags of a group read as one integer; of a larger group, as several uint64


class EntryCounts(NamedTuple):
    """Give what was counted in a weight.

    Args:
        nonzeros: Entries that are not zero. NaN is one of them.
        violations: Places that break the pattern.
        negative_zeros: Zeros that are -0.0.
        nans: Entries that are NaN.
    """

    nonzeros: int = 0
    violations: int = 0
    negative_zeros: int = 0
    nans: int = 0

    def plus(self, other: "EntryCounts") -> "EntryCounts":
        """Return the sum of two counts.

        Args:
            other: The counts of another part.
        """
        return EntryCounts(*(a + b for a, b in zip(self, other, strict=True)))


def count_entries(weight: Tensor, n: int = 1, m: int = 1) -> EntryCounts:
    """Count the entries of a weight, and its groups with more than `n` non-zeros.

    Args:
        weight: The weight, or a mask.
        n: Entries that a group may keep.
        m: Consecutive entries of a group along the last dimension. With `n` = `m` no group is counted.
    """
    if not _can_be_viewed(weight):
        return _counts_in_torch(weight, n, m)
    groups = Counts(n, m) if m > 1 else _NO_GROUPS
    worth_an_import = cpu.BACKEND.is_loaded or weight.numel() > IMPORT_ABOVE
    if worth_an_import and cpu.BACKEND.supports(COUNT_ENTRIES, groups, weight):
        number = cpu.BACKEND.runner(COUNT_ENTRIES, groups)(weight)
        if 0 <= number < 1 << 32:  # nothing is wrong
            return EntryCounts(number)
    return _counts_in_numpy(_bits(weight), _INFINITY.get(weight.dtype), n, m)


class PartCounter:
    """Count the entries of weights that come part by part, such as from a file.

    Args:
        dtype: Their type, of 16-bit or 32-bit floats.
        n: Entries that a group may keep.
        m: Entries of a group. With `n` = `m` no group is counted.
        entries: The entries of all weights that will come; of many, a kernel is worth its import.
    """

    def __init__(self, dtype: torch.dtype, n: int, m: int, entries: int):
        self._dtype, self._n, self._m = dtype, n, m
        self._bytes = 16 * m * dtype.itemsize  # that a kernel counts in one step
        groups = Counts(n, m)
        worth_an_import = cpu.BACKEND.is_loaded or entries > IMPORT_ABOVE_IN_ALL
        large = torch.empty(16 * m << 12, dtype=dtype, device="cpu")  # not written
        supported = worth_an_import and cpu.BACKEND.supports(COUNT_ENTRIES, groups, large)
        self._kernel = cpu.BACKEND.kernels.counter(n, m, dtype) if supported else None

    def count(self, part: np.ndarray, address: int) -> EntryCounts:
        """Count the entries of a part.

        Args:
            part: Its bytes, as uint8. It begins and ends between two groups, and its address fits its type.
            address: Its address, which NumPy takes long to say.
        """
        if self._kernel is not None:
            sixteens = part.size // self._bytes
            number = self._kernel(address, sixteens)
            if 0 <= number < 1 << 32:  # nothing is wrong
                return EntryCounts(number).plus(self._in_numpy(part[sixteens * self._bytes :]))
        return self._in_numpy(part)

    def _in_numpy(self, part: np.ndarray) -> EntryCounts:
        bits = part.view(_INTEGERS[self._dtype.itemsize])
        return _counts_in_numpy(bits, _INFINITY[self._dtype], self._n, self._m)


def count_full_columns(weight: Tensor, n: int, m: int) -> int:
    """Return how many groups of `m` consecutive rows of one column have more than `n` non-zeros.

    Args:
        weight: A weight or a mask, whose number of rows is a multiple of `m`. Several matrices may be stacked.
        n: Entries that a group may keep.
        m: Entries of a group.
    """
    if not weight.numel():
        return 0
    if not _can_be_viewed(weight):
        return _full_groups_in_torch(weight.mT, n, m)
    rows = _bits(weight).reshape(-1, weight.shape[-1])
    step = max(PART // rows.shape[1] // m, 1) * m
    full = 0
    for start in range(0, len(rows), step):
        flags = _nonzero(rows[start : start + step], weight.dtype in _INFINITY)
        tall = flags.view(np.uint8).reshape(-1, m, rows.shape[1]).sum(1, dtype=np.uint16)
        full += int(np.count_nonzero(tall > n))
    return full


def holds_mask(weight: Tensor, mask: Tensor, n: int = 1, m: int = 1) -> bool:
    """Return True if `keep` would change no number, and no group of the mask keeps more than `n` entries.

    The first is so if all that the mask prunes is +0.0 and nothing is -0.0.

    Args:
        weight: A weight of floats.
        mask: A mask of its shape, True where an entry is kept.
        n: Entries that a group may keep.
        m: Consecutive entries of a group along the last dimension. With `n` = `m` no group is looked at.
    """
    groups = Counts(n, m) if m > 1 else _NO_GROUPS
    worth_an_import = cpu.BACKEND.is_loaded or weight.numel() > IMPORT_ABOVE
    if worth_an_import and cpu.BACKEND.supports(COUNT_STRAYS, groups, weight, mask):
        return cpu.BACKEND.runner(COUNT_STRAYS, groups)(weight, mask) == 0
    if m > 1 and count_entries(mask, n, m).violations:
        return False
    if not (_can_be_viewed(weight) and weight.is_contiguous() and mask.is_contiguous() and mask.device.type == "cpu"):
        return not _strays_in_torch(weight, mask).any()
    rows, kept = _bits(weight), _bits(mask).view(bool)
    flags = np.empty(min(PART, rows.size), dtype=bool)
    for start in range(0, rows.size, PART):
        bits_here, flags_here = rows[start : start + PART], flags[: rows.size - start]
        np.not_equal(bits_here, 0, out=flags_here)
        np.greater(flags_here, kept[start : start + PART], out=flags_here)
        if flags_here.any() or bits_here.view(f"i{bits_here.itemsize}").min() == -int(_sign_bit(bits_here)):
            return False
    return True


def _can_be_viewed(weight: Tensor) -> bool:
    """Return True if NumPy can read the bits of a weight where they are."""
    plain = weight.device.type == "cpu" and type(weight) in (Tensor, torch.nn.Parameter)
    whole_numbers = weight.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return plain and (whole_numbers or weight.dtype in _INFINITY)


def _bits(weight: Tensor) -> np.ndarray:
    """Return the bits of a weight as unsigned integers in one row; a copy if it is not contiguous."""
    flat = weight.contiguous().view(-1).view(torch.uint8)
    return flat.numpy().view(_INTEGERS[weight.dtype.itemsize])


def _counts_in_numpy(bits: np.ndarray, infinity: int | None, n: int, m: int) -> EntryCounts:
    part = max(PART // m, 1) * m
    flags = np.empty(min(part, bits.size), dtype=bool)
    counts = EntryCounts()
    for start in range(0, bits.size, part):
        counts = counts.plus(_counts_of_part(bits[start : start + part], infinity, flags, n, m))
    return counts


def _counts_of_part(bits: np.ndarray, infinity: int | None, flags: np.ndarray, n: int, m: int) -> EntryCounts:
    flags = flags[: bits.size]
    negative_zeros = nans = 0
    if infinity is not None and _is_unusual(bits, infinity):
        magnitudes = bits & _magnitude_bits(bits)
        nans = int(np.count_nonzero(magnitudes > infinity))
        negative_zeros = int(np.count_nonzero(bits == _sign_bit(bits)))
        np.not_equal(magnitudes, 0, out=flags)
    else:
        np.not_equal(bits, 0, out=flags)
    return EntryCounts(*_nonzeros_and_full_groups(flags, n, m), negative_zeros, nans)


def _is_unusual(bits: np.ndarray, infinity: int) -> bool:
    """Return True if numbers hold a NaN or -0.0. Extremes say so, without a pass for each kind of number."""
    signed = bits.view(f"i{bits.itemsize}")
    if signed.min() == -int(_sign_bit(bits)):  # as a signed integer -0.0 is the smallest
        return True
    if bits.itemsize == 4:
        with np.errstate(invalid="ignore"):
            return bool(np.isnan(bits.view(np.float32).max(initial=0)))
    # As a signed integer a positive NaN is above infinity. As an unsigned one a negative NaN is above minus infinity.
    return bool(signed.max() > infinity or bits.max() > int(_sign_bit(bits)) + infinity)


def _sign_bit(bits: np.ndarray) -> np.unsignedinteger:
    return bits.dtype.type(1 << (8 * bits.itemsize - 1))


def _magnitude_bits(bits: np.ndarray) -> np.unsignedinteger:
    return bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)


def _nonzero(bits: np.ndarray, is_float: bool) -> np.ndarray:
    return (bits & _magnitude_bits(bits)) != 0 if is_float else bits != 0


def _nonzeros_and_full_groups(flags: np.ndarray, n: int, m: int) -> tuple[int, int]:
    """Return how many flags are set, and how many groups have more than n. No flags are read twice.

    A product adds up the bytes of a word in its highest byte.
    """
    if n >= m:
        return int(np.count_nonzero(flags)), 0
    if m not in _WORDS and (m % 8 or m > 248):  # 256 flags are one too many for a byte
        return int(np.count_nonzero(flags)), int(np.count_nonzero(flags.reshape(-1, m).sum(1, dtype=np.uint16) > n))
    words = flags.view(_WORDS.get(m, np.uint64))
    if m > 8:
        words = reduce(np.add, words.reshape(-1, m // 8).T)  # a sum over so short rows takes twelve times as long
    ones = int.from_bytes(b"\x01" * words.itemsize, "little")
    sums = words * words.dtype.type(ones)
    sums >>= words.dtype.type(8 * (words.itemsize - 1))
    full = 0 if sums.max(initial=0) <= n else int(np.count_nonzero(sums > n))
    # The sum of a part of 16-bit words fits in 32 bits.
    return int(sums.sum(dtype=sums.dtype if sums.itemsize > 2 else np.uint32)), full


def _counts_in_torch(weight: Tensor, n: int, m: int) -> EntryCounts:
    negative_zeros = nans = 0
    if weight.is_floating_point():
        negative_zeros = int(torch.count_nonzero((weight == 0) & torch.signbit(weight)))
        nans = int(torch.count_nonzero(torch.isnan(weight)))
    return EntryCounts(int(torch.count_nonzero(weight)), _full_groups_in_torch(weight, n, m), negative_zeros, nans)


def _full_groups_in_torch(weight: Tensor, n: int, m: int) -> int:
    if n >= m:
        return 0
    groups = weight.unflatten(-1, (weight.shape[-1] // m, m))
    return int((groups.count_nonzero(-1) > n).sum())


def _counts_as_one_number(pattern: NMPattern, weight: Tensor) -> int:
    """Return the non-zeros, plus 2**32 times the violations and -0.0; or -1 if there is a NaN."""
    counts = count_entries(weight, pattern.n, pattern.m)
    return -1 if counts.nans else counts.nonzeros + ((counts.violations + counts.negative_zeros) << 32)


def _strays_in_torch(weight: Tensor, mask: Tensor) -> Tensor:
    """Return True for each pruned entry that is not +0.0, and each -0.0."""
    bits = integer_view(weight)
    return (bits != 0) & ~mask | (bits == torch.iinfo(bits.dtype).min)


def _count_strays_in_torch(pattern: NMPattern, weight: Tensor, mask: Tensor) -> int:
    """Return the number of strays, plus that of groups that keep too many entries."""
    return int(_strays_in_torch(weight, mask).sum()) + count_entries(mask, pattern.n, pattern.m).violations


COUNT_ENTRIES = Operation("count_entries", _counts_as_one_number, ("float",))
COUNT_STRAYS = Operation("count_strays", _count_strays_in_torch, ("float", "mask"), refuses_nan=False)
