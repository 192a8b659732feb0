"""The kept entries of a masked weight: where they lie when they are packed side by side, without the pruned ones.

Entries are packed in the order of the weight, in chunks. Each chunk begins at a multiple of sixteen, so that it can be
read by whole vectors, and no two chunks share a vector. An N:M mask fills whole vectors; others leave a few zeros.
"""

import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # entries of a weight whose kept ones are packed together; what a step needs of them fits in a first cache
MIN_PAGES = 2**16  # bytes of the smallest tensor that is put into pages of its own
ALIGNED = 16  # a chunk of packed entries begins at a multiple of this


@dataclass(frozen=True, eq=False)
class KeptEntries:
    """The places of the kept entries of a weight, in a bit per entry.

    Args:
        shape: The shape of the weight.
        bits: The mask in the order of the weight, eight entries to a byte, the first in the lowest bit.
        offsets: Where each chunk begins among the packed entries, and where the last one ends.
    """

    shape: torch.Size
    bits: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "KeptEntries":
        """Return the kept entries of a mask.

        Args:
            mask: True where an entry is kept; on the CPU.
        """
        counts = _counts(mask.reshape(-1).numpy())
        offsets = np.concatenate([[0], np.cumsum(-(-counts // ALIGNED) * ALIGNED)])
        return cls(mask.shape, _bits(mask), torch.from_numpy(offsets.astype(np.int64)))

    @property
    def chunks(self) -> int:
        """Return the number of chunks."""
        return len(self.offsets) - 1

    def has_mask(self, mask: Tensor) -> bool:
        """Return whether these are the kept entries of a mask.

        Args:
            mask: A mask on the CPU.
        """
        return mask.shape == self.shape and torch.equal(_bits(mask), self.bits)

    def pack(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor, side by side.

        Args:
            dense: A tensor of the shape of the weight.
        """
        indices, places = self._places()
        packed = self.zeros(dense.dtype)
        packed.numpy()[places] = dense.detach().reshape(-1).numpy().take(indices)
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Return the tensor whose kept entries were packed, with +0.0 at all others.

        Args:
            packed: What `pack` returned, or another tensor of its size.
        """
        indices, places = self._places()
        dense = _zeros(self.shape.numel(), packed.dtype).view(self.shape)
        dense.view(-1).numpy()[indices] = packed.numpy()[places]
        return dense

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """Return the packed entries of zeros.

        Args:
            dtype: Their dtype.
        """
        return _zeros(int(self.offsets[-1]), dtype)

    def _places(self) -> tuple[np.ndarray, np.ndarray | slice]:
        """Return where each kept entry lies in the weight, and where among the packed ones."""
        flags = np.unpackbits(self.bits.numpy(), bitorder="little").view(bool)
        indices, counts, offsets = np.flatnonzero(flags), _counts(flags), self.offsets.numpy()
        if len(indices) == offsets[-1]:
            return indices, slice(None)
        skipped = offsets[:-1] - (np.cumsum(counts) - counts)
        return indices, np.arange(len(indices)) + np.repeat(skipped, counts)


def _zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Return zeros in pages of their own, which the system gets back when they are freed.

    In the heap, dense tensors that are freed between packed ones leave holes, and no memory is saved.
    """
    size = count * dtype.itemsize
    if size < MIN_PAGES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(count, dtype=dtype, device="cpu")
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype)


def _bits(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.reshape(-1).numpy(), bitorder="little"))


def _counts(flags: np.ndarray) -> np.ndarray:
    """Return the number of kept entries of each chunk."""
    starts = np.arange(0, len(flags), CHUNK)
    return np.add.reduceat(flags, starts, dtype=np.int64)
