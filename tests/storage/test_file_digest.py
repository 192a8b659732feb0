"""Digests of files: what `manifest` describes, however the blocks come and whoever sums them up."""

import hashlib

import numpy as np
import pytest

from nxm_hf.solvers import cpu, reference_only
from nxm_hf.solvers.block_sums import sum_up
from nxm_hf.storage import file_blocks
from nxm_hf.storage.file_blocks import BLOCK, CHUNK, SHAPE, read_in_blocks
from nxm_hf.storage.file_digest import CHANGED, SHORT, FileDigest, WriteDigest

SIZES = (0, 1, BLOCK, SHORT, SHORT + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, CHUNK - 8, CHUNK, CHUNK + 9)


def reference(content: bytes) -> str:
    """Return the digest by its description."""
    if len(content) <= 1 << 20:
        return hashlib.sha256(content).hexdigest()
    parts = b""
    for chunk in (content[at : at + CHUNK] for at in range(0, len(content), CHUNK)):
        sums = b""
        for at in range(0, len(chunk), BLOCK):
            block = np.frombuffer(chunk[at : at + BLOCK].ljust(BLOCK, b"\0"), "<u8").reshape(SHAPE)
            sums += block.sum(0).tobytes() + block.sum(1).tobytes()
        parts += hashlib.sha256(sums).digest()
    return hashlib.sha256(parts).hexdigest()


@pytest.mark.parametrize("by", ["numpy", "kernel"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_digest_is_that_of_the_description_at_every_edge_of_a_block(by, threads, tmp_path, monkeypatch):
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: threads)
    if by == "kernel":
        pytest.importorskip("numba", reason="the kernels for CPUs need numba")
        assert cpu.BACKEND.works()
    content = np.random.default_rng(0).integers(0, 256, max(SIZES), np.uint8).tobytes()
    paths = [tmp_path / str(size) for size in SIZES]
    for path, size in zip(paths, SIZES, strict=True):
        path.write_bytes(content[:size])
    if by == "kernel":
        digests = [FileDigest(size) for size in SIZES]
        assert all(digest._sum_up is not sum_up for digest in digests[SIZES.index(SHORT + 1) :])
    else:
        with reference_only():
            digests = [FileDigest(size) for size in SIZES]
    read_in_blocks(zip(paths, SIZES, ([digest] for digest in digests), strict=True))
    assert [digest.hexdigest() for digest in digests] == [reference(content[:size]) for size in SIZES]


@pytest.mark.parametrize("piece", [4096, BLOCK - 1, BLOCK, 2 * BLOCK + 3, CHUNK])
def test_bytes_on_their_way_into_a_file_have_the_digest_of_the_file(piece):
    content = np.random.default_rng(0).integers(0, 256, max(SIZES), np.uint8).tobytes()
    digest = WriteDigest()  # of one file after another
    for size in SIZES:
        digest.begin(size)
        for at in range(0, size, piece):
            digest.add(memoryview(content)[at : min(at + piece, size)])
        digest.add(memoryview(b""))
        assert digest.hexdigest() == reference(content[:size]), size
    digest.begin(size + 1)
    digest.add(memoryview(content)[:size])
    assert digest.hexdigest() == CHANGED


def test_a_file_of_which_not_all_blocks_have_come_has_no_digest(tmp_path):
    content = bytes(2 * BLOCK)
    (tmp_path / "file").write_bytes(content[:BLOCK])
    cut = FileDigest(len(content))
    read_in_blocks([(tmp_path / "file", len(content), [cut])])
    assert cut.hexdigest() == CHANGED


CHUNKS = pytest.mark.parametrize("size", [9, SHORT, SHORT + 1, 2 * BLOCK, CHUNK])


@CHUNKS
@pytest.mark.parametrize("more", [1, BLOCK, CHUNK, CHUNK + BLOCK])
@pytest.mark.parametrize("grows", ["before the first block", "after it"])
def test_a_file_that_grows_while_it_is_read_has_no_digest(size, more, grows, tmp_path, monkeypatch):
    """Zeros at its end leave the sums of the last block as they were."""
    monkeypatch.setattr(file_blocks.os, "cpu_count", lambda: 1)
    path = tmp_path / "file"
    path.write_bytes(bytes(size + more) if grows == "before the first block" else bytes(size))

    def grow(block) -> None:
        if path.stat().st_size == size:
            path.write_bytes(bytes(size + more))

    digest = FileDigest(size)
    read_in_blocks([(path, size, [digest, grow])])
    one_read = grows == "after it" and size < BLOCK  # its end was seen with its only block
    assert one_read or digest.hexdigest() == CHANGED


@CHUNKS
@pytest.mark.parametrize("left", [0, 1, BLOCK])
def test_a_file_that_was_cut_before_it_is_read_has_no_digest(size, left, tmp_path):
    (tmp_path / "file").write_bytes(bytes(min(left, size - 1)))
    digest = FileDigest(size)
    read_in_blocks([(tmp_path / "file", size, [digest])])
    assert digest.hexdigest() == CHANGED
