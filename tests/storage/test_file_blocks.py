"""Files in blocks: every byte comes once, in order, with the bytes before it, and from any number of threads."""

import os
import random
import threading
from collections import defaultdict

import numpy as np
import pytest

from nxm_hf.storage import file_blocks
from nxm_hf.storage.file_blocks import BLOCK, CHUNK, OVERLAP, SHAPE, Block, read_in_blocks

# Digests of manifests are made of such blocks and chunks, so those on disks would no longer match.
assert (SHAPE, BLOCK, CHUNK) == ((255, 513), 255 * 513 * 8, 16 * 255 * 513 * 8)
SIZES = (0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 8, 4 * BLOCK + 3)


@pytest.fixture(params=[(1, CHUNK), (3, BLOCK), (3, 2 * BLOCK)], ids=str)
def small_chunks(request, monkeypatch):
    """Read by one thread and by several, in chunks of few blocks."""
    threads, chunk = request.param
    monkeypatch.setattr(file_blocks, "_THREADS", threads)
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: threads)
    monkeypatch.setattr(file_blocks, "CHUNK", chunk)


def test_every_byte_of_every_file_comes_once_with_the_bytes_before_it(tmp_path, small_chunks):
    contents = [random.Random(size).randbytes(size) for size in SIZES]
    parts = [defaultdict(bytes) for _ in SIZES]

    def reader(content, found):
        def read(block: Block) -> None:
            begin = max(block.begin - OVERLAP, 0)
            assert bytes(block.bytes(begin, block.end)) == content[begin : block.end]
            at = (begin + block.end) // 2
            assert block.bytes(at, block.end).ctypes.data == block.address(at)
            padded = block.words.tobytes()
            assert block.words.shape == SHAPE and padded == content[block.begin : block.end].ljust(BLOCK, b"\0")
            assert block.begin % BLOCK == 0 and block.words[0, 0] == int.from_bytes(padded[:8], "little")
            assert block.begin not in found
            found[block.begin] = bytes(block.bytes(block.begin, block.end))

        return read

    paths = [tmp_path / str(size) for size in SIZES]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    read_in_blocks((path, len(pair[0]), [reader(*pair)]) for path, *pair in zip(paths, contents, parts, strict=True))
    for content, found in zip(contents, parts, strict=True):
        assert b"".join(found[begin] for begin in sorted(found)) == content


def test_all_readers_of_a_file_see_its_blocks_one_after_the_other(tmp_path):
    (tmp_path / "file").write_bytes(bytes(BLOCK + 1))
    seen = []
    readers = [lambda block, name=name: seen.append((name, block.begin, block.end)) for name in "ab"]
    read_in_blocks([(tmp_path / "file", BLOCK + 1, readers), (tmp_path / "file", BLOCK + 1, [])])
    assert seen == [("a", 0, BLOCK), ("b", 0, BLOCK), ("a", BLOCK, BLOCK + 1), ("b", BLOCK, BLOCK + 1)]


@pytest.mark.parametrize(
    ("cores", "chunks", "threads"), [(None, 3, 1), (1, 3, 1), (2, 3, 2), (3, 7, 3), (9, 7, 4), (9, 2, 2), (9, 1, 1)]
)
def test_chunks_are_shared_by_a_thread_for_each_core_and_at_most_four(cores, chunks, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(file_blocks, "CHUNK", BLOCK)
    path, size = tmp_path / "file", chunks * BLOCK - 1
    path.touch()
    os.truncate(path, size)
    met, seen, begins = threading.Barrier(threads), set(), []

    def read(block: Block) -> None:
        begins.append(block.begin)
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            met.wait(30)  # until so many threads have read a block

    read_in_blocks([(path, size, [read])])
    assert (threading.get_ident() in seen) == (threads == 1), "one thread is the caller's own"
    assert len(seen) == threads and sorted(begins) == [*range(0, size, BLOCK)]


def test_an_error_of_a_reader_or_of_a_file_is_raised(tmp_path, small_chunks):
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK))

    def fail(block: Block) -> None:
        raise ValueError(f"at {block.begin}")

    with pytest.raises(ValueError, match="at "):
        read_in_blocks([(path, 3 * BLOCK, [fail])])
    with pytest.raises(FileNotFoundError):
        read_in_blocks([(tmp_path / "absent", 1, [fail])])


def test_of_a_file_that_is_cut_short_meanwhile_the_rest_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(file_blocks, "CHUNK", BLOCK)
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK))
    ends = []

    def read(block: Block) -> None:
        ends.append(block.end)
        with path.open("r+b") as file:
            file.truncate(BLOCK + 9)

    read_in_blocks([(path, 3 * BLOCK, [read])])
    assert ends == [BLOCK, BLOCK + 9]


def test_nothing_of_an_earlier_file_is_left_in_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: 1)
    (tmp_path / "a").write_bytes(b"\xff" * (2 * BLOCK))
    (tmp_path / "b").write_bytes(b"\1" * 11)
    sums = []
    read = [lambda block: sums.append(block.words.copy())]
    read_in_blocks([(tmp_path / "a", 2 * BLOCK, [lambda block: None]), (tmp_path / "b", 11, read)])
    assert np.count_nonzero(sums[0].view(np.uint8)) == 11
