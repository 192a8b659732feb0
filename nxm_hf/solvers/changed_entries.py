"""The entries of an array that a change gave other bits, held for the way back: a flag for each, and the old bits.

A kernel compares, flags and gathers in one pass, where NumPy takes several. It is used if kernels are loaded already.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nxm_hf.solvers import cpu

LANES = cpu.LANES  # entries that a kernel reads at a time; so many more than there are must be there


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
        return self.flags.nbytes + (self.old if self.old.base is None else self.old.base).nbytes

    @property
    def _are_equal(self) -> bool:
        return self.old.strides == (0,)

    def restore(self, entries: Tensor) -> None:
        """Change entries back in place.

        Args:
            entries: The entries, of which others than the changed ones may have other bits by now.
        """
        room = np.repeat(self.old[:1], LANES) if self._are_equal else self.old.base
        if room is not None and room.size >= LANES and (kernels := _kernels(entries)) is not None:
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


def room_for(entries: Tensor) -> ChangedEntries:
    """Return room for all entries, of which none has changed so far.

    Args:
        entries: Integers for which `can_keep` is True.
    """
    flags, room = _buffers(entries)
    flags.fill(0)
    return ChangedEntries(flags, room[: len(entries)])


def keep_and_hold(source: Tensor, mask: Tensor, out: Tensor, room: ChangedEntries) -> ChangedEntries:
    """Write kept entries, and +0.0 elsewhere and for -0.0. Return what that has overwritten.

    Args:
        source: The bits of floats, for which `can_keep` is True.
        mask: True where an entry is kept.
        out: Where to write; it may be the source.
        room: The room for `out`. From the first write on it holds what was overwritten, also after an interrupt.
    """
    memory = room.old.base
    assert memory is not None  # `room_for` takes a part of it
    return _shortened(room.flags, memory, cpu.BACKEND.kernels.keep_entries(source, mask, out, room.flags, memory))


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
    flags, room = _buffers(old)
    return _shortened(flags, room, kernels.compare_entries(old, new, flags, room))


def _buffers(entries: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(len(entries) // 8, np.uint8), np.empty(len(entries) + LANES, entries.numpy().dtype)


def _shortened(flags: np.ndarray, room: np.ndarray, count: int) -> ChangedEntries:
    """Return what a kernel has held, without the room that it did not need."""
    short = _short(room[:count])
    # The kernel of the way back reads sixteen entries at a time, so there have to be some more.
    return ChangedEntries(flags, short if short.strides == (0,) else room[: count + LANES].copy()[:count])


def _short(bits: np.ndarray) -> np.ndarray:
    """Return equal bits as one entry that is shown many times, such as those of -0.0 that becomes +0.0."""
    return np.broadcast_to(bits[:1].copy(), bits.shape) if bits.size and (bits == bits[0]).all() else bits


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
        room = np.repeat(ours.old[:1], LANES) if ours._are_equal else ours.old.base
        kernels.restore_entries(new, ours.flags, room, ours._are_equal)
        if not torch.equal(new, old) or not _keeps_rightly(kernels, old, ~chosen):
            return False
    return True


def _keeps_rightly(kernels: Any, source: Tensor, mask: Tensor) -> bool:
    """Return whether a kernel writes the kept entries of a source over others, and holds what these were."""
    zero = torch.iinfo(source.dtype).min  # -0.0
    kept, out = torch.where(mask & (source != zero), source, 0), source.roll(7)
    expected = changed_in_numpy(out, kept)
    flags, room = _buffers(out)
    held = _shortened(flags, room, kernels.keep_entries(source, mask, out, flags, room))
    return torch.equal(out, kept) and all(np.array_equal(a, b) for a, b in zip(held, expected, strict=True))
