"""The digest of a file in a manifest, made block by block. `manifest` says what it is, and what it finds."""

import hashlib
from typing import Any

import numpy as np

from nxm_hf.solvers.block_sums import summation
from nxm_hf.storage.file_blocks import BLOCK, CHUNK, SHAPE, Block

SHORT = 1 << 20  # bytes of a file whose content is digested
CHANGED = "has changed while it was read"  # instead of a digest; no file has it


class FileDigest:
    """Digest a file whose blocks it is called with; the chunks may come in any order.

    Args:
        size: The bytes of the file.
    """

    def __init__(self, size: int):
        self._size = size
        self._sum_up = summation(SHAPE) if size > SHORT else None
        # By number of a chunk. The blocks of a chunk come from one thread, so no two threads change the same item.
        self._parts: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}

    def __call__(self, block: Block) -> None:
        """Digest a block.

        Args:
            block: The next block of its chunk.
        """
        chunk = block.begin // CHUNK
        part = self._parts.setdefault(chunk, hashlib.sha256())
        self._sizes[chunk] = self._sizes.get(chunk, 0) + block.end - block.begin
        if self._sum_up is None:
            part.update(block.bytes(block.begin, block.end).data)
            return
        sums = np.empty(sum(SHAPE), "<u8")
        self._sum_up(block.words, sums)
        part.update(sums.data)

    def hexdigest(self) -> str:
        """Return the digest, after all blocks. It is `CHANGED` if fewer or more bytes came than the file had."""
        if sum(self._sizes.values()) != self._size:
            return CHANGED
        if self._sum_up is None:
            return (self._parts[0] if self._parts else hashlib.sha256()).hexdigest()
        return hashlib.sha256(b"".join(self._parts[chunk].digest() for chunk in sorted(self._parts))).hexdigest()


class WriteDigest:
    """Digest bytes on their way into a file. The digest is that of `FileDigest` if the file holds the same bytes."""

    def begin(self, size: int) -> None:
        """Forget what came before, and expect a file.

        Args:
            size: The bytes of the file.
        """
        self._digest, self._block = FileDigest(size), Block()
        self._block.begin = self._block.end = 0
        self._memory = self._block.words.view(np.uint8).reshape(-1)

    def add(self, data: memoryview) -> None:
        """Digest the next bytes of the file.

        Args:
            data: The bytes.
        """
        new = np.frombuffer(data, np.uint8)
        while len(new):
            part = new[: BLOCK - self._filled]
            self._memory[self._filled : self._filled + len(part)] = part
            self._block.end += len(part)
            new = new[len(part) :]
            if self._filled == BLOCK:
                self._take_block()

    @property
    def _filled(self) -> int:
        """Return the bytes that the block holds."""
        return self._block.end - self._block.begin

    def _take_block(self) -> None:
        self._memory[self._filled :] = 0
        self._digest(self._block)
        self._block.begin = self._block.end

    def hexdigest(self) -> str:
        """Return the digest, after all bytes."""
        if self._filled:
            self._take_block()
        return self._digest.hexdigest()
