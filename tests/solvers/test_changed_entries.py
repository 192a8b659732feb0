"""Entries that a change gave other bits: NumPy and kernels find and hold the same, and bring them back."""

import numpy as np
import pytest
import torch

from nxm_hf.patterns import NM
from nxm_hf.solvers import changed_entries as module
from nxm_hf.solvers import cpu, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.changed_entries import (
    LANES,
    PartMasks,
    Room,
    can_keep,
    can_solve_parts,
    changed_entries,
    changed_in_numpy,
    keep_and_hold,
    kernels_are_right,
)
from nxm_hf.solvers.entry_counts import PartCounter, count_entries
from nxm_hf.solvers.weight_ops import magnitude_mask

COUNT = 2**16 + 16 * 3
TYPES = pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
CHANGES = {
    "nothing": lambda old: old.clone(),
    "everything": lambda old: old + 1,
    "first": lambda old: torch.cat([old[:1] + 1, old[1:]]),
    "last": lambda old: torch.cat([old[:-1], old[-1:] + 1]),
    "a third": lambda old: torch.where(torch.arange(len(old)) % 3 == 1, 0, old),
}


@pytest.fixture
def kernels():
    """The kernels, which are loaded."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    assert cpu.BACKEND.works()
    if not cpu.BACKEND.kernels.can_gather():
        pytest.skip("the kernels that gather need AVX-512")
    return cpu.BACKEND.kernels


def numbers(dtype, count=COUNT):
    limits, generator = torch.iinfo(dtype), torch.Generator().manual_seed(3)
    return torch.randint(limits.min, limits.max, (count,), generator=generator, dtype=dtype)


def memory(array) -> int:
    """Return the bytes that stay in memory with an array."""
    while array.base is not None:
        array = array.base
    return array.nbytes


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@TYPES
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_old_entries_come_back_from_a_flag_for_each_and_the_bits_of_those_that_differ(
    dtype, change, compiled, request
):
    if compiled:
        request.getfixturevalue("kernels")
    old = numbers(dtype, COUNT if compiled else 1003)
    new = CHANGES[change](old)
    held = changed_entries(old, new) if compiled else changed_in_numpy(old, new)
    differs = (old != new).numpy()
    assert np.array_equal(np.unpackbits(held.flags, count=len(old), bitorder="little"), differs)
    assert np.array_equal(held.old, old.numpy()[differs]) and equal(held, changed_in_numpy(old, new))
    assert held.nbytes <= len(old) / 8 + 1 + (differs.sum() + LANES) * old.itemsize
    assert memory(held.old) <= (differs.sum() + LANES) * old.itemsize
    for restore in (held.restore, held.restore_in_numpy):
        entries = new.clone()
        restore(entries)
        assert torch.equal(entries, old)


@TYPES
def test_many_equal_old_entries_are_held_as_one_and_come_back_to_their_places(dtype, kernels):
    chosen = torch.arange(COUNT) % 5 == 2
    old = numbers(dtype).masked_fill(chosen, torch.iinfo(dtype).min)
    new = old.masked_fill(chosen, 0)
    held = changed_entries(old, new)
    assert held.nbytes == COUNT / 8 + old.itemsize and memory(held.old) == old.itemsize
    held.restore(new)
    assert torch.equal(new, old)


@TYPES
@pytest.mark.parametrize("in_place", [False, True])
def test_kept_entries_are_written_in_the_pass_that_holds_what_was_there(dtype, in_place, kernels):
    floats = {torch.int16: torch.bfloat16, torch.int32: torch.float32}[dtype]
    source = torch.randn(COUNT, generator=torch.Generator().manual_seed(0)).to(floats)
    source[:6] = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-40])
    mask = torch.arange(COUNT) % 4 < 2
    mask[:6] = True
    out = source.clone() if in_place else torch.randn(COUNT).to(floats)
    before, expected = out.clone(), torch.where(mask & (source != 0), source, 0.0)
    bits, assumed = out.view(dtype), before.view(dtype)
    assert can_keep(bits)
    room = Room()
    whole = room.take(bits)
    changed, _ = keep_and_hold(bits if in_place else source.view(dtype), mask, bits, whole)
    held = room.shortened(whole, changed)
    assert torch.equal(bits, expected.view(dtype))
    assert equal(held, changed_in_numpy(assumed, expected.view(dtype)))
    for way_back in (held, whole):
        now = bits.clone()
        way_back.restore(now)
        assert torch.equal(now, assumed)
        now = bits.clone()
        way_back.restore_in_numpy(now)
        assert torch.equal(now, assumed)
    fresh = bits.clone()
    Room().take(fresh).restore(fresh)
    assert torch.equal(fresh, bits), "nothing has changed yet"


def test_parts_share_room_and_each_comes_back_after_all_were_held(kernels, monkeypatch):
    """Also from several pieces of memory, of which one is too small, and from parts that hold nothing or equal bits."""
    monkeypatch.setattr(module, "_PIECE", 3 * COUNT)
    room, parts = Room(), []
    for i, dtype in enumerate([torch.int16, torch.int32] * 12):
        out = numbers(dtype, COUNT + 16 * i)
        source, mask = (torch.zeros_like(out) if i % 5 == 4 else out.clone()), torch.arange(len(out)) % (i + 2) != 1
        if i % 5 == 3:
            out[~mask], source[~mask] = torch.iinfo(dtype).min, 7
        before, held = out.clone(), room.take(out)
        begin = held.old.ctypes.data - room._piece.ctypes.data
        assert begin % 64 == 0 and len(held.old) == len(out)
        assert begin + (len(out) + LANES) * out.itemsize <= room._piece.size, "kernels write sixteen entries at a time"
        changed, _ = keep_and_hold(source, mask, out, held)
        parts.append((out, before, room.shortened(held, changed)))
    for out, before, held in parts:
        assert equal(held, changed_in_numpy(before, out))
        held.restore(out)
        assert torch.equal(out, before)
    owners = {id(held.old.base) for _, _, held in parts if held.old.strides != (0,)}
    assert 1 < len(owners) < len(parts)


def test_a_part_that_holds_little_leaves_the_rest_of_its_room_to_the_next():
    room, out = Room(), numbers(torch.int32)
    first = room.take(out)
    first.old[:5] = range(5)
    room.shortened(first, 5)
    assert room.take(out).old.ctypes.data == first.old.ctypes.data + 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (16, 32)])
def test_masks_of_parts_and_counts_of_parts_are_those_of_the_whole_weight(dtype, n, m, kernels):
    weight = torch.randn(24, 2**13, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40])
    weight[1] = weight[2]
    assert can_solve_parts(weight, NM(n, m))
    expected = torch.where(magnitude_mask(weight, NM(n, m)) & (weight != 0), weight, 0)
    integers = {2: torch.int16, 4: torch.int32}[weight.itemsize]
    bits, counter = weight.view(-1).view(integers), PartCounter(dtype, n, m, 0)
    _, counts = keep_and_hold(bits, PartMasks(weight, n, m), bits, Room().take(bits), counter)
    assert torch.equal(bits, expected.view(-1).view(integers))
    assert counts == count_entries(expected, n, m) and counts.nonzeros > 0 and not any(counts[1:])


def test_a_nan_is_refused_with_the_number_of_all_and_what_was_written_comes_back(kernels):
    weight = torch.randn(24, 2**13)
    weight[17, 5] = weight[23, 8191] = torch.nan
    bits = weight.view(-1).view(torch.int32)
    before, held = bits.clone(), Room().take(bits)
    with pytest.raises(ValueError, match=f"Scores hold 2 NaN of {weight.numel()}"):
        keep_and_hold(bits, PartMasks(weight, 2, 4), bits, held)
    assert not torch.equal(bits, before)
    held.restore(bits)
    assert torch.equal(bits, before)


def test_parts_are_solved_only_where_groups_fill_whole_vectors_and_kernels_are_loaded(kernels, monkeypatch):
    weight = torch.ones(24, 2**13)
    assert can_solve_parts(weight, NM(2, 4)) and not can_solve_parts(weight, NM(3, 5))
    assert not can_solve_parts(torch.ones(COUNT), NM(16, 32)) and not can_solve_parts(weight[:1, :64], NM(2, 4))
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: pytest.fail("imported"), groups_at_once=16))
    assert not can_solve_parts(weight, NM(2, 4))


@pytest.mark.parametrize("name", ["compare_entries", "keep_entries", "restore_entries"])
@pytest.mark.parametrize("wrong", [0, 4111, 1000])
def test_a_kernel_that_forgets_an_entry_fails_its_test(name, wrong, kernels):
    """Each is handed one entry that is changed behind its back."""

    class Broken:
        def __getattr__(self, asked):
            run = getattr(kernels, asked)
            if asked != name:
                return run

            def broken(*arguments):
                found = run(*arguments)
                if name == "restore_entries":
                    arguments[0][wrong] ^= 1
                else:
                    arguments[-2][wrong // 8] ^= 1 << wrong % 8
                return found

            return broken

    for dtype in (torch.int16, torch.int32):
        assert kernels_are_right(kernels, dtype)
        assert not kernels_are_right(Broken(), dtype)


def test_there_is_no_kernel_for_few_entries_wide_ones_or_where_none_is_to_be_used(kernels, monkeypatch):
    assert can_keep(numbers(torch.int32))
    odd = (numbers(torch.int32, 2**10), numbers(torch.int64), numbers(torch.uint8), numbers(torch.int32, COUNT + 1))
    assert not any(map(can_keep, odd))
    with reference_only():
        assert not can_keep(numbers(torch.int32))
    loads = []
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: loads.append(None), groups_at_once=16))
    assert not can_keep(numbers(torch.int32)) and not loads, "nothing is imported to compare entries"
