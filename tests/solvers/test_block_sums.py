"""Sums of blocks: modulo 2^64, of every column and then of every row, by NumPy and by a kernel."""

import numpy as np
import pytest

from nxm_hf.solvers import cpu, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.block_sums import sum_up, summation, sums_are_right

SHAPE = (255, 513)
BLOCKS = {
    "random": np.random.default_rng(1).integers(0, 2**64, SHAPE, np.uint64),
    "largest": np.full(SHAPE, 2**64 - 1, np.uint64),
    "zero": np.zeros(SHAPE, np.uint64),
    "places": np.arange(255 * 513, dtype=np.uint64).reshape(SHAPE) << np.uint64(40),
}


def expected(block) -> list[int]:
    """Return the sums with Python's integers."""
    rows = block.tolist()
    return [sum(column) % 2**64 for column in zip(*rows, strict=True)] + [sum(row) % 2**64 for row in rows]


@pytest.fixture
def kernel():
    """The kernel, which is loaded."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    assert cpu.BACKEND.works()
    run = summation(SHAPE)
    assert run is not sum_up
    return run


@pytest.mark.parametrize("name", BLOCKS)
def test_numpy_and_the_kernel_give_the_sums_of_columns_and_then_of_rows(name, kernel):
    for run in (sum_up, kernel):
        sums = np.full(sum(SHAPE), 77, "<u8")
        before = BLOCKS[name].copy()
        run(before, sums)
        assert sums.tolist() == expected(BLOCKS[name]) and (before == BLOCKS[name]).all()


def test_a_kernel_that_forgets_a_row_or_a_column_fails_its_test(kernel):
    assert sums_are_right(kernel, SHAPE)
    for forgotten in (np.s_[254], np.s_[:, 512], np.s_[0], np.s_[:, 0]):

        def wrong(block, sums, forgotten=forgotten):
            block = block.copy()
            block[forgotten] = 0
            kernel(block, sums)

        assert not sums_are_right(wrong, SHAPE)


def test_nothing_is_imported_for_sums_and_numpy_makes_them_where_kernels_are_not_to_be_used(monkeypatch, kernel):
    with reference_only():
        assert summation(SHAPE) is sum_up
    loads = []
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: loads.append(None), groups_at_once=16))
    assert summation(SHAPE) is sum_up and not loads
