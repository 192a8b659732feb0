"""`fade`: pruned weights go to zero in a straight line, whatever the optimizer does, and nothing is left to prune."""

from functools import partial

import pytest
import torch

from nxm_hf import NxMConfig, attach, recipes
from nxm_hf.methods import Masked
from nxm_hf.methods.schedules import Constant, Every, ShareOfTheRest
from nxm_hf.patterns import parse
from tests.support.recipe_runs import STEPS, assert_agrees
from tests.support.references import Law, Staged, top
from tests.support.toy_training import OPTIMIZERS, Toy, same, train, trained, weights


class Fading(Law):
    """Train densely; after step t of `total` set what is pruned to (total - t) / (total - t + 1) of itself."""

    def __init__(self, name, total, every=10, pattern="2:4", fisher=False):
        super().__init__(name, pattern)
        self.total, self.every, self.fisher, self.hand = total, every, fisher, None

    def begin(self, w):
        self.m = self.best(w)
        return w

    def train(self, t, w, g, hand):
        self.hand = hand
        w = hand(w, g)
        w = torch.where(self.m, w, w - w / (self.total - t + 1))
        if t % self.every == 0:
            self.m = self.best(w)
        return w

    def best(self, w):
        has_squares = self.fisher and self.hand is not None and torch.is_tensor(self.hand.second)
        return top(w.abs() * self.hand.second.sqrt() if has_squares else w.abs(), self.pattern)

    def mask(self, w):
        return self.best(w)


class FadingAfterWarmup(Staged):
    """`Staged`, in which the law knows the optimizer's moments when it begins."""

    def train(self, t, w, g, hand):
        self.law.hand = hand
        return super().train(t, w, g, hand)

    def mask(self, w):
        return self.law.best(w) if self.t < self.a else super().mask(w)


EARLY = 1e-9  # a phase of no step: 0 would be the recipe's own
WHOLE = dict(warmup=EARLY, settle=EARLY)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "unstructured:0.4"])
def test_fade_is_what_it_is_by_hand(pattern, optimizer):
    config = NxMConfig("fade", pattern, {"refresh": 4}, **WHOLE)
    assert_agrees(config, partial(Fading, total=STEPS, every=4, pattern=pattern, fisher=True), optimizer)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("scores", ["fisher", "magnitude"])
def test_fade_goes_between_its_own_warmup_and_its_own_frozen_mask(scores, optimizer):
    assert NxMConfig("fade").phases == (0.2, 0.3)
    a, e = round(0.2 * STEPS), STEPS - round(0.3 * STEPS)
    law = partial(Fading, total=e - a, every=3, fisher=scores == "fisher")
    config = NxMConfig("fade", settings={"refresh": 3, "scores": scores})
    assert_agrees(config, partial(FadingAfterWarmup, law=law, a=a, e=e), optimizer)


def test_the_phases_of_fade_give_way_to_those_of_the_config():
    assert NxMConfig("fade", warmup=0.6).phases == (0.6, 0.2)
    assert NxMConfig("fade", settle=0.5).phases == (0.2, 0.5)
    assert NxMConfig("fade", settle=0.75).phases == (0.125, 0.75)
    with pytest.raises(ValueError, match=r"warmup=0.3 and settle=0.8 leave no step"):
        NxMConfig("fade", warmup=0.3, settle=0.8)


def test_pruned_weights_go_to_zero_in_a_straight_line_at_a_learning_rate_of_zero():
    model = Toy(dtype=torch.float64)
    start = weights(model)
    stepper = torch.optim.AdamW(model.parameters(), lr=0.0)
    attach(model, stepper, NxMConfig("fade", **WHOLE), 10)
    for done in train(model, stepper, 0, 10):
        for weight, before in zip(weights(model), start, strict=True):
            kept = top(before.abs(), "2:4")
            torch.testing.assert_close(weight, torch.where(kept, before, before * (1 - done / 10)))
    assert all(parse("2:4").violations(weight) == 0 for weight in weights(model))


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_nothing_is_left_to_prune_where_the_mask_is_frozen(optimizer):
    """The weights of the last step of the recipe hold the pattern already."""
    model, engine = trained(NxMConfig("fade", **WHOLE), optimizer=lambda m: OPTIMIZERS[optimizer](m.parameters()))
    trained_weights = [weight.clone() for _, weight in engine.trained_weights()]
    assert engine.metrics()["nxm/residual"] == 0
    engine.finish()
    assert same(trained_weights, weights(model))


def test_the_recipe_is_this_method():
    expected = Masked(
        Constant(parse("2:4")), refresh=Every(10), gain=Constant(1.0), shrink=ShareOfTheRest(), scores="fisher"
    )
    assert recipes.fade(parse("2:4")) == expected


@pytest.mark.parametrize(
    ("settings", "says"), [({"scores": "wanda"}, "'magnitude', 'fisher'; got 'wanda'"), ({"refresh": 0}, "refresh=10")]
)
def test_wrong_settings_of_fade_say_what_to_write(settings, says):
    with pytest.raises(ValueError, match=says):
        NxMConfig("fade", settings=settings)
