"""The kept entries of a mask: packed side by side, and put back among zeros."""

import mmap
from pathlib import Path

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers.kept_entries import ALIGNED, CHUNK, MIN_PAGES, KeptEntries
from tests.support.toy_training import same

SHAPES = [(1, 16), (16, 64), (3, 48), (5, 7, 16), (4, CHUNK), (9, 1008), (1, 1)]
MASKS = {
    "some": lambda shape: torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.6,
    "all": lambda shape: torch.ones(shape, dtype=torch.bool),
    "none": lambda shape: torch.zeros(shape, dtype=torch.bool),
}
EACH_MASK = pytest.mark.parametrize(("shape", "kind"), [(shape, kind) for shape in SHAPES for kind in MASKS])


DTYPES = (torch.float32, torch.float64, torch.float16)


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@EACH_MASK
def test_what_is_unpacked_is_what_was_packed_and_positive_zeros(shape, kind):
    mask = MASKS[kind](shape)
    kept = KeptEntries.of(mask)
    for dtype in DTYPES:
        dense = drawn(shape).to(dtype)
        with torch.device("meta"):  # a training may have set another default
            packed = kept.pack(dense)
            unpacked = kept.unpack(packed)
        assert packed.dtype == dtype and same([unpacked], [torch.where(mask, dense, 0.0)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_have_pages_of_their_own_that_no_other_process_writes_to(dtype):
    """The system gets pages back when a tensor is freed. Entries are packed and unpacked there as elsewhere."""
    rows = 2 * MIN_PAGES // CHUNK // dtype.itemsize
    mask, dense = torch.arange(rows * CHUNK).view(rows, CHUNK) % 2 == 0, drawn((rows, CHUNK)).to(dtype)
    kept = KeptEntries.of(mask)
    packed = kept.pack(dense)
    unpacked = kept.unpack(packed)
    assert packed.nbytes == MIN_PAGES and same([unpacked], [torch.where(mask, dense, 0.0)])
    assert unpacked.data_ptr() % mmap.PAGESIZE == packed.data_ptr() % mmap.PAGESIZE == 0
    assert same([kept.zeros(dtype)], [torch.zeros(rows * CHUNK // 2, dtype=dtype)])
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        assert not begin <= packed.data_ptr() < end or line.split()[1] == "rw-p", "private, as memory is"


@EACH_MASK
def test_each_chunk_holds_its_kept_entries_in_order_and_then_zeros(shape, kind):
    mask, dense = MASKS[kind](shape), drawn(shape)
    kept = KeptEntries.of(mask)
    packed = kept.pack(dense)
    assert kept.chunks == -(-dense.numel() // CHUNK) and len(packed) == kept.offsets[-1]
    for number, (part, flags) in enumerate(zip(dense.view(-1).split(CHUNK), mask.view(-1).split(CHUNK), strict=True)):
        begin, end = kept.offsets[number : number + 2].tolist()
        expected = part[flags]
        assert begin % ALIGNED == 0 and 0 <= end - begin - len(expected) < ALIGNED
        assert same([packed[begin:end]], [torch.cat([expected, torch.zeros(end - begin - len(expected))])])


@pytest.mark.parametrize(
    ("pattern", "share"), [("2:4", 2), ("1:4", 4), ("4:8", 2), ("1:16", 16), ("2:4-transposable", 2)]
)
def test_an_nm_mask_leaves_no_room_between_chunks(pattern, share):
    dense = drawn((64, 2 * CHUNK // 16))
    kept = KeptEntries.of(parse(pattern).mask(dense.abs()))
    assert len(kept.pack(dense)) == dense.numel() // share and kept.bits.nbytes == dense.numel() // 8


def test_a_mask_is_known_again_by_its_entries_and_its_shape():
    mask = MASKS["some"]((16, 64))
    kept, other = KeptEntries.of(mask), mask.clone()
    other[3, 5] ^= True
    assert kept.has_mask(mask.clone()) and not kept.has_mask(other) and not kept.has_mask(mask.view(64, 16))


def test_a_mask_that_changes_later_changes_no_kept_entries():
    mask, dense = MASKS["some"]((16, 64)), drawn((16, 64))
    before, kept = mask.clone(), KeptEntries.of(mask)
    packed = kept.pack(dense)
    mask.logical_not_()
    assert same([kept.unpack(packed)], [torch.where(before, dense, 0.0)])
