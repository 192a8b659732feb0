"""The digest of a file in a manifest, made block by block. `manifest` says what it is, and what it finds."""

import hashlib

import numpy as np

from nxm_hf.solvers.block_sums import summation
from nxm_hf.storage.file_blocks import CHUNK, SHAPE, Block

SHORT = 1 << 20  # bytes of a file whose content is digested


class FileDigest:
    """Digest a file whose blocks it is called with; the chunks may come in any order.

    Args:
        size: The bytes of the file.
    """

    def __init__(self, size: int):
        self._sum_up = summation(SHAPE) if size > SHORT else None
        self._parts = [hashlib.sha256() for _ in range(0, size, CHUNK)]  # of each chunk

    def __call__(self, block: Block) -> None:
        """Digest a block.

        Args:
            block: The next block of its chunk.
        """
        part = self._parts[block.begin // CHUNK]
        if self._sum_up is None:
            part.update(block.bytes(block.begin, block.end).data)
            return
        sums = np.empty(sum(SHAPE), "<u8")
        self._sum_up(block.words, sums)
        part.update(sums.data)

    def hexdigest(self) -> str:
        """Return the digest, after all blocks."""
        if self._sum_up is None:
            return (self._parts[0] if self._parts else hashlib.sha256()).hexdigest()
        return hashlib.sha256(b"".join(part.digest() for part in self._parts)).hexdigest()
