"""The entries of an array that a change gave other bits, held for the way back: a flag for each, and the old bits.

A kernel compares, flags and gathers in one pass, where NumPy takes several. It is used if kernels are loaded already.
"""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers import cpu
from nxm_hf.solvers.base import NMPattern, refuse_nan
from nxm_hf.solvers.entry_counts import EntryCounts, PartCounter
from nxm_hf.solvers.weight_ops import MAGNITUDE_MASK

LANES = cpu.LANES  # entries that a kernel reads at a time; so many more than there are must be there
_PIECE = 1 << 23  # bytes that `Room` allocates at a time
_ALIGNED = 64  # bytes; what a part holds begins at a multiple of them


class ChangedEntries(NamedTuple):
    """Hold what a change in place has overwritten.

    Args:
        flags: A bit for each entry, set if it has changed; the first in the lowest bit of a byte.
        old: The old bits of those that have. If all are equal, one entry that is shown many times.
    """

    flags: np.ndarray
    old: np.ndarray

    @property
    def nbytes(self) -> int:
        """Return the bytes that are held."""
        return self.flags.nbytes + (self.old.itemsize if self._are_equal else self.old.nbytes)

    @property
    def _are_equal(self) -> bool:
        return self.old.size > 0 and self.old.strides == (0,)

    def restore(self, entries: Tensor) -> None:
        """Change entries back in place.

        Args:
            entries: The entries, of which others than the changed ones may have other bits by now.
        """
        kernels = _kernels(entries) if self._are_equal or self.old.base is not None else None
        if kernels is not None:  # only what a kernel has held is a view of a larger array
            room = np.repeat(self.old[:1], LANES) if self._are_equal else self.old
            kernels.restore_entries(entries, self.flags, room, self._are_equal)
        else:
            self.restore_in_numpy(entries)

    def restore_in_numpy(self, entries: Tensor) -> None:
        """Do as `restore` does, with NumPy.

        Args:
            entries: The entries; edited in place.
        """
        flags = np.unpackbits(self.flags, count=len(entries), bitorder="little").view(bool)
        places = np.flatnonzero(flags)  # three times as fast as flags
        entries.numpy()[places] = self.old[: len(places)]


def changed_entries(old: Tensor, new: Tensor) -> ChangedEntries:
    """Return what tells old entries apart from new ones.

    Args:
        old: Integers on the CPU, side by side: the bits from before a change.
        new: As many integers of their type: those of now.
    """
    kernels = _kernels(old)
    return changed_in_numpy(old, new) if kernels is None else _changed_by(kernels, old, new)


def can_keep(entries: Tensor) -> bool:
    """Return whether a kernel prunes entries and holds what that overwrites, in one pass.

    Args:
        entries: Integers, side by side.
    """
    return _kernels(entries) is not None


class Room:
    """Give memory for what changes overwrite. Each part takes as much as it needs, so nothing is copied later."""

    def __init__(self) -> None:
        self._piece, self._used = np.empty(0, np.uint8), 0

    def take(self, entries: Tensor) -> ChangedEntries:
        """Return room for all entries, of which none has changed so far. The next call may give the same room.

        Args:
            entries: Integers for which `can_keep` is True.
        """
        needed = (len(entries) + LANES) * entries.itemsize
        if self._used + needed > self._piece.size:
            self._piece, self._used = np.empty(max(needed, _PIECE), np.uint8), 0
        room = self._piece[self._used : self._used + len(entries) * entries.itemsize]
        return ChangedEntries(np.zeros(len(entries) // 8, np.uint8), room.view(entries.numpy().dtype))

    def shortened(self, held: ChangedEntries, count: int) -> ChangedEntries:
        """Return what was held in the room that was taken last. The rest of that room is free again.

        Args:
            held: What `take` returned.
            count: How many entries have changed.
        """
        short = _short(held.old[:count])
        if short.strides != (0,):
            self._used += -(-short.nbytes // _ALIGNED) * _ALIGNED
        return ChangedEntries(held.flags, short)


class PartMasks:
    """Make the mask of the largest entries of each group for a part of a weight at a time, while it is in the cache.

    Args:
        source: A weight for which `can_solve_parts` is True. No part is written before its mask is made.
        n: Kept entries of a group.
        m: Entries of a group.
    """

    def __init__(self, source: Tensor, n: int, m: int):
        self._source, self._step = source, LANES * m
        self._solve = cpu.BACKEND.kernels.magnitude_solver(n, m, source.dtype)
        self._mask = np.empty(cpu.IN_CACHE, bool)
        self._address = int(self._mask.ctypes.data)

    def __call__(self, address: int, count: int) -> int:
        """Make the mask of a part, and return its address. It holds until the next call.

        Args:
            address: The address of the part.
            count: Its entries.

        Raises:
            ValueError: If the source holds a NaN.
        """
        if self._solve(address, count // self._step, self._address) < 0:
            refuse_nan(self._source)
        return self._address


def can_solve_parts(source: Tensor, pattern: NMPattern) -> bool:
    """Return whether `PartMasks` has a kernel for a weight, whose masks are those of `magnitude_mask`.

    Args:
        source: The weight.
        pattern: An N:M pattern along rows.
    """
    return cpu.BACKEND.is_loaded and cpu.BACKEND.supports(MAGNITUDE_MASK, pattern, source)


def keep_and_hold(
    source: Tensor, mask: Tensor | PartMasks, out: Tensor, held: ChangedEntries, counter: PartCounter | None = None
) -> tuple[int, EntryCounts]:
    """Write kept entries, and +0.0 elsewhere and for -0.0. Hold what that overwrites.

    Args:
        source: The bits of floats, for which `can_keep` is True.
        mask: True where an entry is kept; or what makes such masks for parts of the source.
        out: Where to write; it may be the source.
        held: Room for `out`. From the first write on it holds what was overwritten, also after an interrupt.
        counter: Counts what was written, while it is in the cache.

    Returns:
        How many entries got other bits, and the counts.
    """
    counts: list[EntryCounts] = []
    written = out.view(torch.uint8).numpy()

    def look(begin: int, end: int) -> None:
        assert counter is not None
        counts.append(counter.count(written[begin:end], out.data_ptr() + begin))

    changed = cpu.BACKEND.kernels.keep_entries(
        source, mask, out, held.flags, held.old, None if counter is None else look
    )
    return changed, reduce(EntryCounts.plus, counts, EntryCounts())


def changed_in_numpy(old: Tensor, new: Tensor) -> ChangedEntries:
    """Do as `changed_entries` does, with NumPy.

    Args:
        old: The bits from before a change.
        new: Those of now.
    """
    before = old.numpy()
    differs = before != new.numpy()
    return ChangedEntries(np.packbits(differs, bitorder="little"), _short(before.take(np.flatnonzero(differs))))


def _changed_by(kernels: Any, old: Tensor, new: Tensor) -> ChangedEntries:
    flags, room = np.empty(len(old) // 8, np.uint8), np.empty(len(old) + LANES, old.numpy().dtype)
    count = kernels.compare_entries(old, new, flags, room)
    short = _short(room[:count])
    # The kernel of the way back reads sixteen entries at a time, so there have to be some more.
    return ChangedEntries(flags, short if short.strides == (0,) else room[: count + LANES].copy()[:count])


def _short(bits: np.ndarray) -> np.ndarray:
    """Return equal bits as one entry that is shown many times, such as those of -0.0 that becomes +0.0."""
    if not bits.size or bits[0] != bits[-1] or not (bits == bits[0]).all():
        return bits
    return np.broadcast_to(bits[:1].copy(), bits.shape)


def _kernels(entries: Tensor) -> Any | None:
    """Return the kernels if there are some for such entries, and they pass their self-test."""
    if not cpu.BACKEND.is_loaded or entries.itemsize not in (2, 4) or len(entries) % LANES:
        return None
    if not cpu.BACKEND.available(entries) or not cpu.BACKEND.kernels.can_gather():
        return None
    name = f"comparison of entries of {entries.itemsize} bytes"
    kernels = cpu.BACKEND.kernels
    return kernels if cpu.BACKEND.passes(name, kernels_are_right, kernels, entries.dtype) else None


def kernels_are_right(kernels: Any, dtype: torch.dtype) -> bool:
    """Return whether kernels compare and restore as NumPy does.

    Args:
        kernels: They have `compare_entries` and `restore_entries`.
        dtype: The type of integers.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    limits = torch.iinfo(dtype)
    for share, equal in ((0.0, False), (0.5, False), (0.1, True), (1.0, False)):
        old = torch.randint(limits.min, limits.max, (4112,), generator=generator, dtype=dtype, device="cpu")
        chosen = torch.rand(4112, generator=generator, device="cpu") < share
        old[chosen] = limits.min if equal else old[chosen]
        new = torch.where(chosen, 1, old)
        ours, theirs = _changed_by(kernels, old, new), changed_in_numpy(old, new)
        if any(not np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            return False
        room = np.repeat(ours.old[:1], LANES) if ours._are_equal else ours.old
        kernels.restore_entries(new, ours.flags, room, ours._are_equal)
        if not torch.equal(new, old) or not _keeps_rightly(kernels, old, ~chosen):
            return False
    return True


def _keeps_rightly(kernels: Any, source: Tensor, mask: Tensor) -> bool:
    """Return whether a kernel writes the kept entries of a source over others, and holds what these were."""
    zero = torch.iinfo(source.dtype).min  # -0.0
    kept, out = torch.where(mask & (source != zero), source, 0), source.roll(7)
    expected = changed_in_numpy(out, kept)
    room = Room()
    held = room.take(out)
    held = room.shortened(held, kernels.keep_entries(source, mask, out, *held))
    return torch.equal(out, kept) and all(np.array_equal(a, b) for a, b in zip(held, expected, strict=True))
