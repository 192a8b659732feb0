"""`ste`: the gradient of the masked weight is that of the dense one."""

import pytest
import torch

from nxm_hf import NxMConfig
from tests.support.recipe_runs import CLOSE, OVER_OPTIMIZERS, STEPS, VIEWS, attached
from tests.support.textbook import by_the_book


@OVER_OPTIMIZERS
def test_ste_is_the_straight_through_estimator_of_the_textbook(optimizer):
    runs = attached(NxMConfig("ste"), optimizer), by_the_book(optimizer, 0.0, STEPS)
    for ours, theirs in zip(*runs, strict=True):
        for view, got, expected in zip(VIEWS, ours, theirs, strict=True):
            for one, other in zip(got, expected, strict=True):
                torch.testing.assert_close(one, other, **CLOSE, msg=view)


def test_a_mask_that_is_refreshed_every_third_step_stays_in_between():
    zeros = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(NxMConfig("ste"), "adam")]
    rarely = NxMConfig("ste", settings={"refresh": 3})
    slower = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(rarely, "adam")]
    moves = [t for t in range(1, STEPS) if not torch.equal(slower[t], slower[t - 1])]
    assert moves and all(t % 3 == 0 for t in moves)
    assert any(not torch.equal(zeros[t], zeros[t - 1]) for t in range(1, STEPS) if t % 3)


@pytest.mark.parametrize("refresh", [0, -1, 1.5, True])
def test_a_refresh_that_counts_no_steps_is_refused(refresh):
    with pytest.raises(ValueError, match=r"must be a whole number of at least 1"):
        NxMConfig("ste", settings={"refresh": refresh})
