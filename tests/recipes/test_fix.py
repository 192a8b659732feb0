"""`fix`: when its mask is frozen."""

import torch

from nxm_hf import NxMConfig
from tests.support.recipe_runs import STEPS, attached


def test_fix_settles_half_way_unless_told_otherwise():
    assert NxMConfig("fix").phases == (0.0, 0.5)
    assert NxMConfig("fix", settle=0.2).settle == 0.2


def test_the_mask_of_fix_moves_until_v_and_never_after():
    zeros = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(NxMConfig("fix"), "adam")]
    moves = [t for t in range(2, STEPS + 1) if not torch.equal(zeros[t - 1], zeros[t - 2])]
    assert moves and max(moves) == STEPS // 2 + 1, "the last mask is of the weights after step v - 1"
