"""The density of each step, as planned and as a training has it."""

import pytest

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.analysis.density_schedule import density_schedule
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import NEVER, Decay, Every, Frames
from nxm_hf.patterns import NM
from tests.support.toy_training import Toy, adamw, loss_at, short


def planned(config: NxMConfig, total: int) -> list[float]:
    """What the account says that each forward pass multiplies by."""
    parts = density_schedule(config.method(config.patterns()["default"]), total)
    return [part.pattern.density for part in parts for _ in range(part.steps)]


def seen(config: NxMConfig, total: int) -> list[float]:
    """What each forward pass of a training multiplied by."""
    model, densities = Toy(), []
    optimizer = adamw(model)
    attach(model, optimizer, config, total_steps=total)
    for step in range(total):
        weight = model.linears[0].weight
        densities.append(int(weight.count_nonzero()) / weight.numel())
        optimizer.zero_grad()
        loss_at(step, model).backward()
        optimizer.step()
    return densities


@pytest.mark.parametrize("window", [{}, {"warmup": 0.25, "settle": 0.25}], ids=["whole", "warmup+settle"])
@pytest.mark.parametrize("recipe", [name for name in recipes.names() if name != "dense"])
def test_the_account_of_a_recipe_is_what_its_training_does(recipe, window):
    config = short(recipe, **window)
    plan, found = planned(config, 24), seen(config, 24)
    assert len(plan) == 24 and all(one <= most for one, most in zip(found, plan, strict=True))
    different = sum(one != most for one, most in zip(found, plan, strict=True))
    # What has just grown, or was pruned until now, is still zero in the first forward pass.
    assert different <= (8 if recipe in ("set", "rigl", "acdc") else 0)


@pytest.mark.parametrize("refresh", [NEVER, Every(5)])
def test_the_account_follows_schedules_of_ones_own(refresh):
    """The mask is solved anew when it freezes, whether a refresh is due or not."""
    ladder = Frames((NM(3, 4), NM(2, 4), NM(1, 4)))
    method = Masked(ladder, refresh, gain=Decay("linear", 0.2), freeze=lambda clock: clock.step >= 14)
    config = NxMConfig(method, "1:4")
    assert planned(config, 24) == seen(config, 24)
    assert {0.5, 1.0} <= set(planned(config, 24))


def test_a_method_that_we_know_nothing_of_counts_as_dense():
    class Mine:
        """Four verbs that do nothing."""

        def init(self, weight, clock):
            return {}

        def before_step(self, weight, state, clock):
            pass

        after_step = finish = before_step

    config = NxMConfig(Mine(), "2:4", settle=0.5)
    assert planned(config, 8) == [1.0] * 4 + [0.5] * 4
