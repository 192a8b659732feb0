"""`fix`: when its mask is frozen."""

import pytest
import torch

from nxm_hf import NxMConfig
from nxm_hf.methods import PHASES, Clock
from nxm_hf.patterns import parse
from tests.support.recipe_runs import STEPS, attached


def test_fix_settles_half_way_unless_told_otherwise():
    assert NxMConfig("fix").phases == (0.0, 0.5)
    assert NxMConfig("fix", settle=0.2).settle == 0.2


def test_the_mask_of_fix_moves_until_v_and_never_after():
    zeros = [torch.cat([w.flatten() == 0 for w in used]) for used, _, _ in attached(NxMConfig("fix"), "adam")]
    moves = [t for t in range(2, STEPS + 1) if not torch.equal(zeros[t - 1], zeros[t - 2])]
    assert moves and max(moves) == STEPS // 2, "the last mask is of the weights after step v - 1"


@pytest.mark.parametrize(("total", "window", "frozen_from"), [(36, {}, 17), (36, {"settle": 0.25}, 26), (2, {}, 1)])
def test_fix_freezes_one_step_before_the_fraction_but_never_without_a_step_of_its_own(total, window, frozen_from):
    method = NxMConfig("fix", **window).method(parse("2:4"))
    phases = [PHASES[method.phase_at(Clock(step, total))] for step in range(total)]
    assert phases == ["recipe"] * frozen_from + ["settle"] * (total - frozen_from)
    same_end = NxMConfig("ste", settle=window.get("settle", 0.5)).method(parse("2:4"))
    assert same_end.window(Clock(0, 36)) == (0, 18 if not window else 27)
