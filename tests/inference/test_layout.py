"""The interleaved layout keeps a weight bit for bit, and takes the bytes that it should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxm_hf.inference.layout import INPUTS, ROWS, Layout, deinterleave, held_pattern, interleave
from tests.support.inference import sparse_matrix

PATTERNS = [(1, 4), (2, 4), (3, 4), (1, 8), (2, 8), (4, 8), (7, 8)]


@given(
    st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_weight_comes_back_bit_for_bit(pattern, rows, groups, dtype):
    n, m = pattern
    matrix = sparse_matrix(rows, groups * m, n, m, dtype)
    values, indices = interleave(matrix, n, m)
    assert torch.equal(deinterleave(values, indices, Layout(n, m, *matrix.shape)), matrix)
    assert values.dtype == dtype and values.shape[0] == -(-rows // ROWS)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_lane_of_a_block_is_a_row(pattern):
    n, m = pattern
    matrix = sparse_matrix(2 * ROWS, 2 * INPUTS, n, m)
    values, _ = interleave(matrix, n, m)
    for row in (0, 5, 17, 31):
        assert torch.equal(values[row // ROWS, :, row % ROWS], matrix[row][matrix[row] != 0])


def test_indices_of_a_word_begin_in_its_lowest_bits():
    matrix = torch.zeros(1, 64)
    matrix[0, [1, 3, 4, 6]] = 1.0
    _, indices = interleave(matrix, 2, 4)
    assert int(indices[0, 0, 0]) & 0xFF == 0b10_00_11_01


def test_bytes_are_those_of_values_and_two_bits_each():
    dense = sparse_matrix(768, 768, 2, 4)
    for matrix, share in ((dense, 0.53125), (dense.bfloat16(), 0.5625)):
        packed = sum(tensor.nbytes for tensor in interleave(matrix, 2, 4))
        assert packed == share * matrix.nbytes


@pytest.mark.parametrize(("pattern", "held"), [((2, 4), (2, 4)), ((1, 4), (1, 4)), ((3, 4), (3, 4)), ((4, 8), (4, 8))])
def test_the_pattern_that_a_weight_holds_is_found(pattern, held):
    matrix = sparse_matrix(64, 64, *pattern)
    assert held_pattern(matrix) == held


def test_the_sparsest_pattern_is_found_and_none_in_a_dense_weight():
    assert held_pattern(torch.randn(8, 8)) is None
    assert held_pattern(torch.randn(8, 6)) is None
    assert held_pattern(torch.zeros(8, 8)) == (1, 8)
    matrix = torch.zeros(4, 16)
    matrix[:, :3] = 1.0  # 3:4, and sparser as 3:8
    assert held_pattern(matrix) == (3, 8)


def test_a_weight_that_does_not_hold_the_pattern_is_refused():
    with pytest.raises(ValueError, match="does not hold 1:4: a group has more than 1 non-zeros"):
        interleave(sparse_matrix(8, 8, 2, 4), 1, 4)
    with pytest.raises(ValueError, match="8x6 weight has no 2:4 layout"):
        interleave(torch.zeros(8, 6), 2, 4)
