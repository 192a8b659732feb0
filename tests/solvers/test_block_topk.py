"""Masks of blocks against the one ranking reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import Block
from nxm_hf.solvers import solve
from nxm_hf.solvers.block_topk import block_maxima, by_block_topk, fill_blocks
from tests.support.scores import highest, scores_with_ties, seeded

torch.set_num_threads(1)
quick = settings(max_examples=150)


@quick
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_blocks_keep_the_highest_and_of_equals_the_first(rows, cols, data):
    high, wide = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    count = high * rows * wide * cols
    scores = torch.tensor(data.draw(st.lists(scores_with_ties, min_size=count, max_size=count)))
    scores = scores.view(high * rows, wide * cols)
    pattern = Block(rows, cols, data.draw(st.floats(0.01, 0.99)))
    corners = [(i * rows, j * cols) for i in range(high) for j in range(wide)]
    maxima = [float(scores[i : i + rows, j : j + cols].max()) for i, j in corners]
    kept = highest(torch.tensor(maxima), pattern.kept(scores.shape) // (rows * cols))
    mask = solve(scores, pattern)
    for (i, j), keep in zip(corners, kept, strict=True):
        assert bool((mask[i : i + rows, j : j + cols] == keep).all())


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (2, 3, 8, 12)])
def test_blocks_of_a_stack_of_matrices_are_ranked_together_and_kept_as_a_whole(shape):
    pattern, scores = Block(2, 3, 0.5), seeded(*shape)
    blocks = scores.unflatten(-1, (-1, 3)).unflatten(-3, (-1, 2))  # (..., R, rows, C, cols)
    maxima = blocks.amax((-3, -1))
    assert torch.equal(block_maxima(scores, pattern), maxima)
    kept = highest(maxima.flatten(), pattern.kept_blocks(shape)).view(maxima.shape)
    mask = by_block_topk(scores, pattern)
    assert mask.shape == shape and torch.equal(fill_blocks(kept, scores, pattern), mask)
    whole = mask.unflatten(-1, (-1, 3)).unflatten(-3, (-1, 2))
    assert torch.equal(whole.all(-1).all(-2), kept) and torch.equal(whole.any(-1).any(-2), kept)
