"""Counts of entries, against a loop over single entries in Python."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, cpu, entry_counts, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.base import integer_view
from nxm_hf.solvers.entry_counts import (
    COUNT_ENTRIES,
    PART,
    EntryCounts,
    PartCounter,
    count_entries,
    count_full_columns,
    holds_mask,
)
from nxm_hf.solvers.weight_ops import keep

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
GROUPS = ((1, 2), (2, 4), (3, 5), (4, 8), (7, 12), (8, 16), (16, 32), (33, 40), (200, 256))


def counted_one_by_one(weight: Tensor, n: int, m: int) -> EntryCounts:
    """Return the counts by their definitions."""
    numbers = weight.to(torch.float64).flatten().tolist()
    groups = [numbers[start : start + m] for start in range(0, len(numbers), m)]
    return EntryCounts(
        nonzeros=sum(x != 0 for x in numbers),
        violations=sum(sum(x != 0 for x in group) > n for group in groups) if n < m else 0,
        negative_zeros=sum(x == 0 and math.copysign(1, x) < 0 for x in numbers),
        nans=sum(math.isnan(x) for x in numbers),
    )


def unusual_weight(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return a weight of numbers and zeros of either sign, infinities and NaN of either sign, and denormals."""
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1.0, -1.0], dtype=dtype)
    special = torch.cat([special, torch.full((2,), torch.finfo(dtype).smallest_normal, dtype=dtype) / 2])
    special[-1].neg_()
    chosen = torch.randint(len(special), shape, generator=generator)
    return special[chosen]


@pytest.mark.parametrize("n, m", GROUPS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_counts_are_those_of_a_loop_over_entries(dtype, n, m):
    weight = unusual_weight(dtype, 6, 3 * m)
    assert count_entries(weight, n, m) == counted_one_by_one(weight, n, m)


@pytest.mark.parametrize("n, m", [(1, 1), (2, 4), (16, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_in_use_count_what_a_loop_counts(dtype, n, m, monkeypatch):
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    assert cpu.BACKEND.kernels and cpu.BACKEND.is_loaded
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    lone = torch.zeros_like(weight)
    lone[3, 5] = -0.0
    for entries in (parse("1:8").project(weight), lone + 0.0, lone, weight, unusual_weight(dtype, 16, 64)):
        assert count_entries(entries, n, m) == counted_one_by_one(entries, n, m)


@pytest.mark.parametrize(
    "value, expected", [(-0.0, (31, 0, 1, 0)), (math.nan, (32, 0, 0, 1)), (-math.inf, (32, 0, 0, 0))]
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_unusual_entry_is_seen(dtype, value, expected):
    weight = torch.ones(4, 8, dtype=dtype)
    weight[2, 5] = value
    assert count_entries(weight) == EntryCounts(*expected)
    assert count_entries(-weight).nans == expected[3]


@pytest.mark.parametrize("n, m", GROUPS)
def test_groups_that_keep_all_or_just_too_many_are_counted(n, m):
    """All entries of a group of 256 are one more than a byte can count."""
    assert count_entries(torch.ones(3, 2 * m), n, m) == EntryCounts(6 * m, 6)
    for kept in (n, n + 1):
        weight = torch.cat([torch.ones(4, kept), torch.zeros(4, m - kept)], 1)
        assert count_entries(weight, n, m) == EntryCounts(4 * kept, 4 * (kept > n))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_nan_is_one_and_no_other_number_is(dtype):
    """Next to infinity in the order of bits, or with all bits set."""
    infinity = integer_view(torch.tensor([math.inf], dtype=dtype))
    largest = torch.iinfo(infinity.dtype).max
    for sign in (0, torch.iinfo(infinity.dtype).min):
        for bits in (infinity - 1, infinity, infinity + 1, torch.full_like(infinity, largest)):
            number = (bits | sign).view(dtype)
            assert count_entries(number).nans == int(number.isnan()) == int(bits > infinity)


def test_a_kernel_that_counts_is_to_give_nonzeros_and_faults_as_one_number_and_refuse_nan():
    weight = torch.tensor([[1.0, 2.0, 3.0, -0.0], [0.0, 4.0, 0.0, -0.0], [-0.0, 5.0, 6.0, 7.0]])
    for faults, entries in ((0, weight[:0]), (1, weight[1:2]), (2, weight[:1]), (3, weight[:2]), (5, weight)):
        nonzeros = int(entries.count_nonzero())
        assert COUNT_ENTRIES.reference(parse("2:4"), entries) == nonzeros + faults * 2**32
    weight[1, 2] = math.nan
    assert COUNT_ENTRIES.reference(parse("2:4"), weight) == -1


def test_a_weight_of_several_parts_is_counted_whole():
    weight = torch.randn(5, PART // 4)
    weight[weight.abs() < 0.7] = 0
    weight[0, 0], weight[-1, -1] = -0.0, math.nan
    counts = count_entries(weight, 2, 4)
    groups = weight.view(-1, 4)
    assert counts == EntryCounts(
        int((weight != 0).sum()), int(((groups != 0).sum(1) > 2).sum()), int(weight[0, 0] == 0), 1
    )


@pytest.mark.parametrize("limit, imports", [(2**17, 0), (2**17 - 1, 1)])
def test_a_large_weight_is_worth_the_import_of_a_compiler(monkeypatch, limit, imports):
    loads = []
    backend = Backend("cpu", "numba", lambda: loads.append(None), groups_at_once=16)
    monkeypatch.setattr(cpu, "BACKEND", backend)
    monkeypatch.setattr(entry_counts, "IMPORT_ABOVE", limit)
    monkeypatch.setattr(entry_counts, "IMPORT_ABOVE_IN_ALL", limit + 1)
    weight = torch.tensor([1.0, 2.0, 0.0, 0.0]).repeat(2**15)
    assert count_entries(weight, 2, 4) == EntryCounts(nonzeros=2**16)
    assert len(loads) == imports
    loads.clear()
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: loads.append(None), groups_at_once=16))
    PartCounter(torch.float32, 2, 4, weight.numel() + 1)
    assert len(loads) == imports


@pytest.mark.parametrize("by", ["numpy", "kernel"])
@pytest.mark.parametrize("n, m", [(2, 4), (1, 8), (16, 32), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_counts_of_parts_add_up_to_those_of_the_weight(dtype, n, m, by):
    """However many groups a part has: a kernel counts sixteen in one step, and NumPy the rest."""
    if by == "kernel":
        pytest.importorskip("numba", reason="the kernels for CPUs need numba")
        assert cpu.BACKEND.kernels and cpu.BACKEND.is_loaded
        counter = PartCounter(dtype, n, m, 0)
        assert counter._kernel is not None
        assert cpu.BACKEND.self_tests[f"count_entries of {n}:{m} in {dtype} on cpu"]
    else:
        with reference_only():
            counter = PartCounter(dtype, n, m, 0)
        assert counter._kernel is None
    weight = torch.randn(8, 16 * m, generator=torch.Generator().manual_seed(0)).to(dtype)
    lone = torch.zeros_like(weight)
    lone[0, 0] = -0.0
    for entries in (parse("1:8").project(weight), lone, weight, unusual_weight(dtype, 8, 16 * m)):
        content = entries.view(-1).view(torch.uint8).numpy()
        cuts = [groups * m * dtype.itemsize for groups in (0, 1, 17, 33, 71, 72, 72, 128)]
        parts = [content[begin:end] for begin, end in pairwise(cuts)]
        total = EntryCounts()
        for part in parts:
            total = total.plus(counter.count(part, part.ctypes.data))
        assert total == counted_one_by_one(entries, n, m)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64], ids=str)
def test_masks_and_whole_numbers_are_counted(dtype):
    weight = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]]).to(dtype)
    assert count_entries(weight, 2, 4) == EntryCounts(nonzeros=4, violations=1)


def test_the_smallest_whole_number_is_no_negative_zero():
    assert count_entries(torch.tensor([-128, 0], dtype=torch.int8)) == EntryCounts(nonzeros=1)


def test_complex_numbers_are_counted_by_torch():
    weight = torch.tensor([[1.0, 0.0, 2.0, 3.0]]).to(torch.complex64)
    assert count_entries(weight, 2, 4) == EntryCounts(nonzeros=3, violations=1)


@pytest.mark.parametrize("by", ["numpy", "kernel"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_that_trains_is_counted_as_its_values_are(dtype, transposed, by, monkeypatch):
    if by == "kernel":
        pytest.importorskip("numba", reason="the kernels for CPUs need numba")
        monkeypatch.setattr(base, "MIN_NUMEL", 0)
        assert cpu.BACKEND.kernels
    values = torch.randn(64, 32).clamp(min=0).to(dtype)
    weight = torch.nn.Parameter(values.t() if transposed else values)
    assert count_entries(weight, 2, 4) == counted_one_by_one(weight.detach().contiguous(), 2, 4)
    assert count_full_columns(weight, 2, 4) == counted_one_by_one(weight.detach().T.contiguous(), 2, 4).violations
    assert holds_mask(weight, weight > 0) and not holds_mask(weight, weight > 1)
    assert count_entries(weight.detach().as_subclass(Foreign).requires_grad_(), 2, 4) == count_entries(weight, 2, 4)


class Foreign(Tensor):
    """A tensor whose memory NumPy is not to read, as that of a GPU or of a quantization."""


@pytest.mark.parametrize("n, m", GROUPS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_torch_counts_what_numpy_counts(dtype, n, m):
    weight = unusual_weight(dtype, 2 * m, 3 * m)
    foreign = weight.as_subclass(Foreign)
    assert count_entries(foreign, n, m) == count_entries(weight, n, m)
    assert count_full_columns(foreign, n, m) == count_full_columns(weight, n, m)
    real = weight.nan_to_num(1.0, 1.0, 1.0)
    assert count_entries(real.to(torch.complex128), n, m).violations == count_entries(real, n, m).violations


def test_a_transposed_weight_is_counted_as_it_reads():
    weight = parse("2:4").project(torch.randn(8, 16))
    assert count_entries(weight.T.contiguous().T, 2, 4).violations == 0
    assert count_entries(weight.T, 2, 4) == counted_one_by_one(weight.T.contiguous(), 2, 4)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool], ids=str)
def test_full_columns_are_those_of_the_transpose(dtype):
    weight = torch.randn(24, 10).clamp(min=0).to(dtype)
    weight[0, 0] = 0
    if dtype != torch.bool:
        weight[:8, 3] = -0.0
    assert count_full_columns(weight, 4, 8) == counted_one_by_one(weight.T.contiguous(), 4, 8).violations


def test_full_columns_of_several_parts_are_counted():
    weight = torch.randn(PART // 64, 256).clamp(min=0)
    expected = int(((weight.view(-1, 4, 256) != 0).sum(1) > 2).sum())
    assert count_full_columns(weight, 2, 4) == expected > 0


def test_an_empty_weight_has_no_entries():
    assert count_entries(torch.empty(0, 4), 2, 4) == EntryCounts()
    assert count_full_columns(torch.empty(0, 4), 2, 4) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_mask_is_held_if_keeping_it_would_change_no_bit(dtype, value, kept, transposed):
    weight = torch.randn(514, 260, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert weight.numel() > PART
    mask = weight > 0
    weight[~mask] = 0
    for place in ((0, 0), (300, 7), (513, 259)):
        one, own = weight.clone(), mask.clone()
        one[place], own[place] = value, kept
        one, own = (one.t(), own.t()) if transposed else (one, own)
        after = one.clone()
        keep(after, own)
        assert holds_mask(one, own) == torch.equal(integer_view(after), integer_view(one))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_that_keeps_too_many_of_a_group_is_not_held(mirrored):
    mask = parse("2:4").largest(torch.randn(64, 32))
    weight = torch.randn(64, 32) * mask + 0.0
    fuller = mask.clone()
    fuller[63, 28:31] = True
    weight, mask, fuller = ((each.t().contiguous().t() if mirrored else each) for each in (weight, mask, fuller))
    assert holds_mask(weight, mask, 2, 4) and holds_mask(weight, mask)
    assert holds_mask(weight, fuller) and not holds_mask(weight, fuller, 2, 4)
    assert not holds_mask(weight, mask, 1, 4)
