"""Read files in blocks that fit into the cache of a core, and call every reader with each block.

So a file is read once, however many things are to be known of it. Several threads share the chunks of all files.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Of a block of 64-bit integers; the digests of manifests are made of such blocks. Both are odd, so that a sign that
# changes in all of them changes the sums.
SHAPE = (255, 513)
BLOCK = 255 * 513 * 8  # bytes; they fit into the cache of a core
CHUNK = 16 * BLOCK  # bytes that one thread reads in a row
OVERLAP = 1 << 14  # bytes before a block that can be seen with it
_THREADS = 4  # at most; a training has better uses for the other cores


class Block:
    """Show a part of a file, with the bytes before it. It is used again for the next block.

    Attributes:
        begin: Where the block begins in the file, in bytes.
        end: Where it ends: `BLOCK` bytes after `begin`, or at the end of the file.
        words: All `BLOCK` bytes from `begin` on, as little-endian uint64. Zeros follow the end of the file.
    """

    begin: int
    end: int

    def __init__(self) -> None:
        self._memory = np.zeros(OVERLAP + BLOCK, np.uint8)
        self._address = int(self._memory.ctypes.data)
        self.words = self._memory[OVERLAP:].view("<u8").reshape(SHAPE)

    def bytes(self, begin: int, end: int) -> np.ndarray:
        """Return a part of the file, as uint8.

        Args:
            begin: Where it begins in the file, at most `OVERLAP` bytes before the block.
            end: Where it ends in the file, at most where the block does.
        """
        shift = OVERLAP - self.begin
        return self._memory[begin + shift : end + shift]

    def address(self, begin: int) -> int:
        """Return the address of a byte of `bytes`.

        Args:
            begin: Where it stands in the file.
        """
        return self._address + begin + OVERLAP - self.begin

    def read_chunk(self, file: BinaryIO, begin: int) -> Iterator["Block"]:
        """Yield this block for each part of a chunk.

        Args:
            file: The file.
            begin: Where the chunk begins.
        """
        before = min(begin, OVERLAP)
        room = self._memory.data
        file.seek(begin - before)
        file.readinto(room[OVERLAP - before : OVERLAP])  # type: ignore[attr-defined]  # all binary files have it
        for start in range(begin, begin + CHUNK, BLOCK):
            size = file.readinto(room[OVERLAP:])  # type: ignore[attr-defined]  # less than a block only at the end
            if size == 0:
                return
            self._memory[OVERLAP + size :] = 0
            self.begin, self.end = start, start + size
            yield self
            self._memory[:OVERLAP] = self._memory[BLOCK:]


Reader = Callable[[Block], None]
_Task = tuple[Path, int, Sequence[Reader]]


def read_in_blocks(files: Iterable[tuple[Path, int, Sequence[Reader]]]) -> None:
    """Read files once, and call readers with each block.

    Args:
        files: Each file, with its bytes and the functions to call. The blocks of one chunk come in order and from one
            thread; chunks come in any order, and several at a time. Of a file that is cut short meanwhile, the rest
            does not come. Of one that grows, at least one byte more comes.

    Raises:
        OSError: If a file cannot be read.
    """
    # The last chunk has room for a byte after the end, so that a file that has grown is seen.
    tasks = [(path, at, readers) for path, size, readers in files for at in range(0, size + 1, CHUNK) if readers]
    threads = max(1, min(_THREADS, os.cpu_count() or 1, len(tasks)))
    waiting = iter(tasks)  # `next` of it is atomic
    if threads == 1:
        _read_chunks(waiting)
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_read_chunks, waiting) for _ in range(threads)]:
            done.result()


def _read_chunks(tasks: Iterator[_Task]) -> None:
    """Read chunks until none is left, all through one buffer."""
    buffer = Block()
    for path, begin, readers in tasks:
        with path.open("rb") as file:
            for block in buffer.read_chunk(file, begin):
                for read in readers:
                    read(block)
