"""The training view of weights while the model holds their deployed view: entries that differ and their places.

Most methods only set pruned entries to zero when they deploy a weight. Of 2:4 that is half of the entries, and a bit
for each entry says which. A dense copy would double the memory of all weights while they are saved.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nxm_hf.patterns import NM, Pattern
from nxm_hf.solvers.changed_entries import (
    LANES,
    ChangedEntries,
    PartMasks,
    Room,
    can_keep,
    can_solve_parts,
    changed_entries,
)
from nxm_hf.solvers.changed_entries import keep_and_hold as keep_entries
from nxm_hf.solvers.cpu import IN_CACHE
from nxm_hf.solvers.entry_counts import EntryCounts, PartCounter

_PART = 2**19  # entries compared at a time: flags and copies of so many stay in the cache of a core
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


class Difference:
    """A weight before a change in place, held as the entries that the change gave other bits.

    Args:
        weight: The changed weight. Until `undo` it must not change again in place.
        parts: What has changed in each part of the weight. Those that are missing at the end have not changed.
    """

    def __init__(self, weight: Tensor, parts: list[ChangedEntries]):
        self._weight, self._parts = weight, parts
        self._version = weight._version

    @property
    def nbytes(self) -> int:
        """Return the bytes that are held beside the weight."""
        return sum(part.nbytes for part in self._parts)

    @property
    def is_empty(self) -> bool:
        """Return True if no entry got other bits."""
        return not any(len(part.old) for part in self._parts)

    def whole(self) -> Tensor:
        """Return the weight before the change, as a new tensor."""
        weight = self._weight.clone()
        self._write(weight)
        return weight

    def complete(self) -> None:
        """Note that the weight has its new bits from now on."""
        self._version = self._weight._version

    @property
    def has_changed(self) -> bool:
        """Return True if other code has changed the weight in place since then."""
        return self._weight._version != self._version

    def undo(self, weight: Tensor) -> None:
        """Change the weight back in place.

        Args:
            weight: The weight that the model holds now. After `model.to(...)` it is another tensor, maybe of another
                type.
        """
        if weight.data_ptr() == self._weight.data_ptr():
            self._write(self._weight)
        else:
            weight.copy_(self.whole())

    def _write(self, weight: Tensor) -> None:
        entries = _entries(weight)
        if entries is None:
            raise RuntimeError("A weight that was compared with its copy has another layout now.")
        for part, changed in zip(entries.split(_PART), self._parts, strict=False):  # the last may be missing
            changed.restore(part)
        torch.autograd.graph.increment_version(weight)  # neither NumPy nor a kernel does


Held = Tensor | Difference  # a copy of a weight, or its difference from the weight in the model


@torch.no_grad()
def hold_difference(training: dict[str, Held], name: str, weight: Tensor) -> None:
    """Hold a difference in the place of a copy of a weight, or nothing if no bit of it has changed since.

    The copy stays if that takes less memory, and if the weight is not on the CPU.

    Args:
        training: What is held of each weight; edited in place.
        name: The name of the weight. A clone from before its change is held.
        weight: The changed weight.
    """
    copy, weight = as_tensor(training[name]), weight.detach()
    before, after = _entries(copy), _entries(weight)
    if before is None or after is None:
        return
    pairs = zip(before.split(_PART), after.split(_PART), strict=True)
    held = Difference(weight, [changed_entries(*pair) for pair in pairs])
    if held.is_empty:
        del training[name]
    elif held.nbytes < copy.nbytes:
        training[name] = held


def can_keep_and_hold(weight: Tensor) -> bool:
    """Return True if `keep_and_hold` has a kernel for a weight.

    Args:
        weight: The weight.
    """
    entries = _entries(weight.detach())
    if entries is None or not weight.is_contiguous():
        return False
    return can_keep(entries.split(_PART)[-1])  # the other parts are as large or larger


class Keeping:
    """Prune the weights of a deployment and hold what that overwrites, all in one pass over each.

    Args:
        training: What is held of each weight; edited in place.
    """

    def __init__(self, training: dict[str, Held]):
        self._training, self._room = training, Room()
        self._counters: dict[tuple[torch.dtype, NM], PartCounter] = {}
        self.counts: dict[str, EntryCounts] = {}  # of the deployed weights of N:M patterns, by their names

    @torch.no_grad()
    def keep(self, name: str, weight: Tensor, source: Tensor, mask: Tensor | Pattern, pattern: Pattern) -> bool:
        """Write kept entries into a weight and +0.0 elsewhere, and hold the difference.

        Args:
            name: The name of the weight.
            weight: The weight to change, for which `can_keep_and_hold` is True.
            source: The tensor of which entries are kept; it may be the weight.
            mask: True where an entry is kept; or a pattern whose largest entries are kept.
            pattern: The pattern that the weight should hold then.

        Returns:
            False if source or mask do not fit, and nothing was done.
        """
        entries, numbers = _entries(weight), _entries(source)
        if entries is None or numbers is None or source.dtype != weight.dtype:
            return False
        if not source.is_contiguous() or source.shape != weight.shape:
            return False
        solved = _masks_of_parts(source.detach(), mask) if isinstance(mask, Pattern) else mask
        if isinstance(solved, Tensor) and not (solved.is_contiguous() and solved.shape == weight.shape):
            return False
        parts: list[ChangedEntries] = []
        counter, found = self._counter(weight, pattern), EntryCounts()
        self._training[name] = held = Difference(weight, parts)
        for start in range(0, len(entries), _PART):  # after an error or an interrupt, what has changed so far goes back
            part = slice(start, start + _PART)
            kept = solved.view(-1)[part] if isinstance(solved, Tensor) else solved
            parts.append(self._room.take(entries[part]))
            changed, counts = keep_entries(numbers[part], kept, entries[part], parts[-1], counter)
            parts[-1] = self._room.shortened(parts[-1], changed)
            found = found.plus(counts)
        torch.autograd.graph.increment_version(weight)
        held.complete()
        if held.is_empty:
            del self._training[name]
        if counter is not None:
            self.counts[name] = found
        return True

    def _counter(self, weight: Tensor, pattern: Pattern) -> PartCounter | None:
        """Return a counter for the parts of a weight, or None if a group of its pattern can lie in two parts."""
        if not isinstance(pattern, NM) or any(size % pattern.m for size in (IN_CACHE, _PART, weight.shape[-1])):
            return None
        kind = weight.dtype, pattern
        if kind not in self._counters:
            self._counters[kind] = PartCounter(weight.dtype, pattern.n, pattern.m, 0)
        return self._counters[kind]


def _masks_of_parts(source: Tensor, pattern: Pattern) -> Tensor | PartMasks:
    """Return a `PartMasks` for the largest entries of a pattern, or the whole mask if no kernel solves parts."""
    if isinstance(pattern, NM) and not _PART % (LANES * pattern.m) and can_solve_parts(source, pattern):
        pattern.check(source.shape)
        return PartMasks(source, pattern.n, pattern.m)
    return pattern.largest(source)


def as_tensor(held: Held) -> Tensor:
    """Return a weight as it was in the training view.

    Args:
        held: What is held of it.
    """
    return held.whole() if isinstance(held, Difference) else held


class TrainingTensors(Mapping[str, Tensor]):
    """Tensors of the training view by name. One that is held as a difference is made anew at each look.

    Args:
        held: What is held of each.
    """

    def __init__(self, held: Mapping[str, Held]):
        self._held = held

    def __getitem__(self, name: str) -> Tensor:
        return as_tensor(self._held[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def _entries(weight: Tensor) -> Tensor | None:
    """Return the bits of all entries as integers in their order in memory, or None if there is no such view."""
    if weight.device.type != "cpu" or weight.element_size() not in _INTEGERS:
        return None
    if not weight.is_contiguous() and weight.ndim > 1:
        weight = weight.mT
    return weight.view(-1).view(_INTEGERS[weight.element_size()]) if weight.is_contiguous() else None
