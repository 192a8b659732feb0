"""Masks of blocks against the one ranking reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxm_hf.patterns import Block
from nxm_hf.solvers import solve
from tests.support.scores import highest, scores_with_ties

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
