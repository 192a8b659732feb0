"""Comparison of words: every bit of every word counts, by a kernel and by NumPy."""

import numpy as np
import pytest

from nxm_hf.solvers import cpu, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.equal_words import comparison, comparison_is_right


@pytest.fixture
def kernels():
    """The kernels, which are loaded."""
    pytest.importorskip("numba", reason="the kernels for CPUs need numba")
    assert cpu.BACKEND.works()
    return cpu.BACKEND.kernels


def test_a_bit_that_differs_is_seen_in_every_word(kernels):
    compare = comparison()
    assert compare is kernels.equal_words()
    words = np.random.default_rng(1).integers(0, 2**64, 131, np.uint64)
    for size in (0, 1, 7, 64, 131):
        assert compare(words[:size], words[:size].copy())
        for at in range(size):
            other = words[:size].copy()
            other[at] ^= np.uint64(1 << at % 64)
            assert not compare(words[:size], other) and not compare(other, words[:size])


def test_numpy_compares_where_no_kernel_is_loaded_or_is_to_be_used(kernels, monkeypatch):
    with reference_only():
        assert comparison() is np.array_equal
    monkeypatch.setattr(cpu, "BACKEND", Backend("cpu", "numba", lambda: pytest.fail("imported"), groups_at_once=16))
    assert comparison() is np.array_equal


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: True,
        lambda a, b: False,
        lambda a, b: np.array_equal(a[1:], b[1:]),
        lambda a, b: np.array_equal(a[:-1], b[:-1]),
        lambda a, b: np.array_equal(a, b) if len(a) <= 64 else np.array_equal(a[1:], b[1:]),
        lambda a, b: np.array_equal(a, b) if len(a) <= 64 else np.array_equal(a[:-1], b[:-1]),
        lambda a, b: np.array_equal(a << np.uint64(1), b << np.uint64(1)),
        lambda a, b: np.array_equal(a.view(np.uint32)[::2], b.view(np.uint32)[::2]),
    ],
)
def test_a_comparison_that_overlooks_bits_fails_its_test(wrong):
    assert comparison_is_right(np.array_equal) and not comparison_is_right(wrong)
