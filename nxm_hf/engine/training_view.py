"""The training view of weights while the model holds their deployed view: entries that differ and their places.

Most methods only set pruned entries to zero when they deploy a weight. Of 2:4 that is half of the entries, and a bit
for each entry says which. A dense copy would double the memory of all weights while they are saved.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

_PART = 2**20  # entries compared at a time: flags and copies of so many take little memory
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an entry


class Difference:
    """A weight before a change in place, held as the entries that the change gave other bits.

    Args:
        weight: The changed weight. Until `undo` it must not change again in place.
        parts: Of each part of the weight: a bit for each entry, set if it differs, and the old bits of those.
    """

    def __init__(self, weight: Tensor, parts: list[tuple[np.ndarray, Tensor]]):
        self._weight, self._parts = weight, parts
        self._version = weight._version

    @property
    def nbytes(self) -> int:
        """Return the bytes that are held beside the weight."""
        return sum(flags.nbytes + old.untyped_storage().nbytes() for flags, old in self._parts)

    def whole(self) -> Tensor:
        """Return the weight before the change, as a new tensor."""
        weight = self._weight.clone()
        self._write(weight)
        return weight

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
        for part, (flags, old) in zip(entries.split(_PART), self._parts, strict=True):
            differs = np.unpackbits(flags, count=len(part)).view(bool)
            part.numpy()[np.flatnonzero(differs)] = old.numpy()  # places are three times as fast as flags
        torch.autograd.graph.increment_version(weight)  # NumPy does not


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
    parts = []
    for old, new in zip(before.split(_PART), after.split(_PART), strict=True):
        differs = old.numpy() != new.numpy()
        parts.append((np.packbits(differs), _short(torch.from_numpy(old.numpy().take(np.flatnonzero(differs))))))
    held = Difference(weight, parts)
    if not any(len(old) for _, old in parts):
        del training[name]
    elif held.nbytes < copy.nbytes:
        training[name] = held


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


def _short(bits: Tensor) -> Tensor:
    """Return equal bits as one entry that is shown many times, such as those of -0.0 that becomes +0.0."""
    return bits[:1].clone().expand(len(bits)) if len(bits) and bool((bits == bits[0]).all()) else bits


def _entries(weight: Tensor) -> Tensor | None:
    """Return the bits of all entries as integers in their order in memory, or None if there is no such view."""
    if weight.device.type != "cpu" or weight.element_size() not in _INTEGERS:
        return None
    if not weight.is_contiguous() and weight.ndim > 1:
        weight = weight.mT
    return weight.view(-1).view(_INTEGERS[weight.element_size()]) if weight.is_contiguous() else None
