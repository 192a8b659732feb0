"""`sr-ste`: the gradient of pruned weights has `decay` times the weight added to it."""

from itertools import pairwise

import pytest
import torch

from nxm_hf import NxMConfig
from tests.support.recipe_runs import CLOSE, OVER_OPTIMIZERS, STEPS, VIEWS, attached
from tests.support.textbook import by_the_book


@OVER_OPTIMIZERS
@pytest.mark.parametrize("decay", [2e-4, 0.05])
def test_sr_ste_is_the_sparse_refined_estimator_of_the_paper(optimizer, decay):
    config = NxMConfig("sr-ste", settings={"decay": decay})
    runs = attached(config, optimizer), by_the_book(optimizer, decay, STEPS)
    for ours, theirs in zip(*runs, strict=True):
        for view, got, expected in zip(VIEWS, ours, theirs, strict=True):
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, **CLOSE, msg=view)


def test_masks_move_less_the_stronger_the_decay():
    def moves(decay: float) -> int:
        config = NxMConfig("sr-ste", settings={"decay": decay})
        zeros = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(config, "sgd")]
        return sum(int((now != before).sum()) for before, now in pairwise(zeros))

    assert moves(0.0) > moves(0.5) > moves(5.0)


@pytest.mark.parametrize("decay", [-1e-4, float("nan"), "2e-4", True])
def test_a_decay_that_is_no_strength_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay of sr-ste must be a number of at least 0"):
        NxMConfig("sr-ste", settings={"decay": decay})
