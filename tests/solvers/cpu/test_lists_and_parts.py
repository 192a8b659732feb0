"""Kernels are launched on lists of tensors, on parts and on addresses: they do what torch does with these alone."""

import sys

import numpy as np
import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import cpu, masked_adamw
from nxm_hf.solvers.block_sums import sum_up
from nxm_hf.solvers.entry_counts import COUNT_ENTRIES
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.masked_adamw import AdamWStep, step_dense_in_torch, step_in_torch
from nxm_hf.solvers.self_test import Counts
from tests.support.cpu_kernels import FLOATS, in_torch
from tests.support.scores import assert_holds
from tests.support.toy_training import same

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")
STEP = AdamWStep(3, 0.01, (0.9, 0.999), 1e-8, 0.1, pull=0.3)


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    """Cut few entries into several jobs already, which one thread does or several."""
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**6)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_parts_that_are_given_by_their_addresses_are_counted_and_masked_alone(dtype):
    """Here a row is what one step of a kernel reads. A NaN in another row is not met."""
    kernels, pattern = cpu.BACKEND.kernels, parse("2:4")
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[2] = pattern.project(weight[2])
    weight[0, 3] = weight[4, 5] = torch.nan
    count, solve = kernels.counter(2, 4, dtype), kernels.magnitude_solver(2, 4, dtype)
    for first, last in ((1, 4), (1, 2), (3, 4), (2, 2)):
        part, written = weight[first:last], torch.full(weight.shape, 7, dtype=torch.int8)
        expected = written.clone()
        expected[first:last] = in_torch(lambda part=part: pattern.largest(part)) if len(part) else 0
        assert count(part.data_ptr(), len(part)) == COUNT_ENTRIES.reference(Counts(2, 4), part)
        assert solve(part.data_ptr(), len(part), written[first:].data_ptr()) == 0
        assert torch.equal(written, expected)
    assert count(weight.data_ptr(), 2) == solve(weight.data_ptr(), 2, written.data_ptr()) == -1


def test_sums_of_a_block_and_a_comparison_of_words_are_those_of_numpy():
    shape = (255, 513)
    block = np.random.default_rng(1).integers(0, 2**64, shape, np.uint64)
    sums, expected = (np.full(sum(shape), 77, np.uint64) for _ in range(2))
    cpu.BACKEND.kernels.block_sums(*shape)(block, sums)
    sum_up(block, expected)
    compare = cpu.BACKEND.kernels.equal_words()
    assert compare(sums, expected) == 1 and compare(sums, expected + np.uint64(1)) == 0


@pytest.mark.parametrize("form", ["masked", "dense", "kept"])
def test_each_weight_of_a_list_takes_the_step_that_it_takes_alone_in_torch(form, threads):
    noise, ours, theirs = torch.Generator().manual_seed(0), [], []
    for number, shape in enumerate([(16, 528), (1, 16), (3, 48)]):
        weight, gradient, chance, first, second = (torch.randn(shape, generator=noise) for _ in range(5))
        mask, step = chance > 0.3, AdamWStep(3 + number, 0.01 * number, (0.9, 0.999), 1e-8, 0.1, pull=0.1 * number)
        first, second = (first, second.abs()) if form == "dense" else (first * mask + 0.0, second.abs() * mask)
        moments = [first.clone(), second.clone()]
        if form == "kept":
            kept = KeptEntries.of(mask)
            ours.append(((weight.clone(), gradient, kept, *map(kept.pack, moments)), step))
        else:
            ours.append(((weight.clone(), gradient, mask, *moments), step))
        theirs.append(((weight, gradient, mask, first, second), step))
    if form == "kept" and not masked_adamw.can_step_kept():
        pytest.skip("moments of kept entries need AVX-512")
    names = {"masked": "step_by_kernel", "dense": "step_dense_by_kernel", "kept": "step_kept_by_kernel"}
    getattr(masked_adamw, names[form])(ours)
    for ((weight, _, held, *moments), _), (tensors, step) in zip(ours, theirs, strict=True):
        (step_dense_in_torch if form == "dense" else step_in_torch)(tensors, step)
        found = map(held.unpack, moments) if form == "kept" else moments
        assert same([weight, *found], [tensors[0], *tensors[3:]])


def units_of(matrix, m, across):
    """Return the units of `across` columns of each strip of m rows: (strips, units, m, across)."""
    return matrix.unflatten(0, (-1, m)).unflatten(-1, (-1, across)).transpose(1, 2)


@pytest.mark.parametrize(("text", "across"), [("4:8-transposable", 8), ("2:4-transposable", 64)])
@pytest.mark.parametrize("more", [0, 1])
def test_a_kernel_asks_for_the_few_units_that_it_leaves_and_otherwise_for_whole_strips(text, across, more):
    """It leaves tiles whose squares overflow, and 4 x 4 tiles by the vector. What it asks for is what is written."""
    pattern, many = parse(text), sys.modules["nxm_hf.solvers.cpu.launch"].MANY
    m, asked, rest = pattern.m, [], 12 if pattern.m == 4 else 0
    weight = torch.randn(2 * m, 16 * across + rest, generator=torch.Generator().manual_seed(0))
    even = weight[:, : 16 * across]
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    places = (order < int(many * 32) + more).view(2, 16)
    units = units_of(even, m, across)
    units[..., 1, 2].masked_fill_(places, 1e25)
    flat = places.repeat_interleave(m, 0).repeat_interleave(across, 1)

    def solve(tiles, flags):
        asked.append((tiles.clone(), flags))
        return tiles > 0

    mask = torch.zeros(weight.shape, dtype=torch.bool)
    assert cpu.BACKEND.kernels.nearest_tiles(pattern.n, m, [weight], [mask], solve) == 0
    if rest:
        tiles, flags = asked.pop(0)
        assert flags is None and torch.equal(tiles, weight.view(2, m, -1)[..., -rest:])
        assert torch.equal(mask[:, -rest:], weight[:, -rest:] > 0)
    ((tiles, flags),) = asked
    if more:
        assert flags is None and torch.equal(tiles, even.unflatten(0, (2, m)))
        assert torch.equal(mask[:, : 16 * across], even > 0)
    else:
        assert torch.equal(flags, places) and torch.equal(tiles, units[places])
        assert torch.equal(mask[:, : 16 * across][flat], (even > 0)[flat])
        others = units_of(mask[:, : 16 * across], m, across)[~places]
        assert_holds(others.flatten(0, 1), pattern.n, m)
    weight[m, 3] = torch.nan
    assert cpu.BACKEND.kernels.nearest_tiles(pattern.n, m, [weight], [mask], solve) == -1


@pytest.mark.parametrize("text", ["4:8-transposable", "2:4-transposable"])
@pytest.mark.parametrize("place", [None, (0, 0), (15, 199)])
def test_masks_of_tiles_say_whether_a_score_is_nan(text, place):
    """The last columns are no part of a vector of 4 x 4 tiles."""
    pattern, scores = parse(text), torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    if place is not None:
        scores[place] = torch.nan
    masks = [torch.zeros(each.shape, dtype=torch.bool) for each in (scores, scores[:8])]
    found = cpu.BACKEND.kernels.over_tiles(pattern.n, pattern.m, [scores, scores[:8].contiguous()], masks)
    assert found == (0 if place is None else -1)


def test_the_mask_of_a_part_may_be_made_when_the_part_is_to_be_written():
    kernels = cpu.BACKEND.kernels
    if not kernels.can_gather():
        pytest.skip("the kernels that gather need AVX-512")
    source = torch.randint(1, 1000, (2 * cpu.IN_CACHE + 48,), dtype=torch.int32)
    out, mask, asked = torch.zeros_like(source), torch.rand(len(source)) < 0.5, []

    def mask_of(address, count):
        begin = (address - source.data_ptr()) // source.itemsize
        asked.append((begin, begin + count))
        assert not out[begin:].any()
        return mask.data_ptr() + begin

    room = np.zeros(len(source) // 8, np.uint8), np.zeros(len(source) + 16, np.int32)
    assert kernels.keep_entries(source, mask_of, out, *room) == mask.sum()
    assert torch.equal(out, source * mask)
    assert asked[0][0] == 0 and asked[-1][1] == len(source)
    assert [begin for begin, _ in asked[1:]] == [end for _, end in asked[:-1]]
    assert max(end - begin for begin, end in asked) == cpu.IN_CACHE
