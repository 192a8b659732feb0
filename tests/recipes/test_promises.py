"""What every recipe promises: the final pattern at any step, and optimizers that it refuses."""

import pytest
import torch
from transformers.optimization import Adafactor

from nxm_hf import attach
from nxm_hf.patterns import NM
from tests.support.toy_training import Toy, has_negative_zeros, loss_at, short, train, weights

ALL = ("fix", "reset", "regularize", "mask-decay", "structure-decay", "set", "rigl", "gradual", "acdc", "fade")


@pytest.mark.parametrize("window", [{}, {"warmup": 0.25}, {"settle": 0.25}, {"warmup": 0.25, "settle": 0.25}], ids=str)
@pytest.mark.parametrize("recipe", ALL)
def test_the_deployed_weights_hold_the_final_pattern_at_any_step(recipe, window):
    """Also in a dense turn of acdc, in frame 1 of structure-decay and before gradual pruned anything."""
    model = Toy()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.02)
    engine = attach(model, stepper, short(recipe, "1:4", **window), total_steps=12)
    for done in range(13):
        shown = weights(model)
        with engine.deployed():
            for weight in weights(model):
                nonzero = int(weight.count_nonzero())
                assert nonzero == weight.numel() // 4 or recipe in ("set", "rigl"), "which grow at zero"
                assert NM(1, 4).violations(weight) == 0 and not has_negative_zeros(weight)
        assert all(torch.equal(one, other) for one, other in zip(shown, weights(model), strict=True))
        if done < 12:
            stepper.zero_grad()
            loss_at(done, model).backward()
            stepper.step()
    engine.finish()
    assert all(NM(1, 4).violations(weight) == 0 for weight in weights(model))


ADAFACTORS = {
    "transformers": lambda model: Adafactor(model.parameters(), lr=1e-2, relative_step=False, scale_parameter=False),
    "torch": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
}
EDITING = {"set": {}, "rigl": {}, "acdc": {}, "reset": {"reset_moments": "first"}}


@pytest.mark.parametrize("maker", ADAFACTORS)
@pytest.mark.parametrize("recipe", [*ALL, "reset with moments"])
def test_adafactor_is_refused_by_the_recipes_that_edit_moments_and_by_no_other(recipe, maker):
    name, _, more = recipe.partition(" ")
    model = Toy()
    before, stepper = weights(model), ADAFACTORS[maker](model)
    config = short(name, settings=EDITING["reset"] if more else {})
    if more or (name in EDITING and name != "reset"):
        with pytest.raises(ValueError, match=r"moments .* Adafactor keeps none.* Use AdamW or SGD"):
            attach(model, stepper, config, 12)
        assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))
        return
    engine = attach(model, stepper, config, 12)
    for _ in train(model, stepper, 0, 12):
        pass
    engine.finish()
    assert all(NM(2, 4).violations(weight) == 0 for weight in weights(model))
