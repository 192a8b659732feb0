"""`reset`: when it resets, and what it clears."""

from functools import partial

import pytest
import torch
from torch import nn

from nxm_hf import NxMConfig, attach
from tests.support.recipe_runs import OVER_OPTIMIZERS, attached, attached_weight
from tests.support.toy_training import Toy, same, train, weights


def resets(every, total=20):
    """The steps, counted from 1, after which every pruned weight is zero."""
    config = NxMConfig("reset", settings={"every": every})
    found = []
    for t, (used, trained, _) in enumerate(attached(config, "momentum", total), 1):
        if all(not w[u == 0].any() for u, w in zip(used, trained, strict=True)):
            found.append(t)
    return found


@pytest.mark.parametrize("every", [1, 3, 7])
def test_reset_is_due_where_t_is_a_multiple_of_z_with_t_from_one(every):
    assert resets(every) == list(range(every, 21, every))


def test_reset_of_longer_than_the_training_is_ste():
    runs = [attached(config, "adamw") for config in (NxMConfig("reset"), NxMConfig("ste"))]
    for ours, of_ste in zip(*runs, strict=True):
        assert all(same(one, two) for one, two in zip(ours, of_ste, strict=True))


@OVER_OPTIMIZERS
def test_reset_at_every_step_never_rewires(optimizer):
    """Paper: z = 1 is no rewiring, as the pruned begin each step at zero."""
    zeros = [u[0] == 0 for u, _, _ in attached(NxMConfig("reset", settings={"every": 1}), optimizer)]
    assert sum(not torch.equal(zeros[0], later) for later in zeros) == 0


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_momentum_grows_pruned_weights_back_only_when_it_is_kept(optimizer):
    """algorithms.md 3.3: one step after a reset, with no gradient at all, only the old momentum moves them."""
    grown = {}
    for moments in ("none", "first", "both"):
        weight = nn.Parameter(torch.tensor([[0.8, -0.3, 0.5, 0.1]], dtype=torch.float64))
        makers = {"momentum": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
        stepper = makers[optimizer]([weight], lr=0.01)
        engine = attached_weight(weight, stepper, "reset", 9, settings={"every": 3, "reset_moments": moments})
        for t in range(1, 5):
            weight.grad = torch.full_like(weight, 0.2 if t < 4 else 0.0)
            stepper.step()
            ((_, dense),) = engine.trained_weights()
            if t == 3:
                assert not dense[0, [1, 3]].any(), "reset"
        grown[moments] = float(dense[0, [1, 3]].abs().min())
    assert grown["none"] > 0 and grown["first"] == grown["both"] == 0


@pytest.mark.parametrize("moments", ["none", "first", "both"])
def test_reset_clears_the_moments_that_it_names_of_pruned_weights_alone(moments):
    model = Toy()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.01)
    engine = attach(model, stepper, NxMConfig("reset", settings={"every": 4, "reset_moments": moments}), 8)
    for _ in train(model, stepper, 0, 3):
        pass
    masks = [used != 0 for used in weights(model)]
    for _ in train(model, stepper, 3, 4):
        pass
    for linear_, mask in zip(model.linears, masks, strict=True):
        state = stepper.state[linear_.weight]
        for slot, cleared in (("exp_avg", moments != "none"), ("exp_avg_sq", moments == "both")):
            assert bool((state[slot][~mask] == 0).all()) == cleared
            assert (state[slot][mask] != 0).all()
    assert engine.step == 4
