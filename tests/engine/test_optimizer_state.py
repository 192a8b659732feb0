"""Optimizers: which can be used, and what recipes do to their moments."""

import pytest
import torch
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nxm_hf import attach
from nxm_hf.layers.sharding import local
from nxm_hf.patterns import NM
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOW
from tests.support.group_of_one import group_of_one
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    assert_sparse,
    short,
    train,
    trained,
    weights,
)


def _adafactor(model):
    return transformers.optimization.Adafactor(model.parameters(), lr=1e-2, scale_parameter=False, relative_step=False)


def _adafactor_relative(model):
    return transformers.optimization.Adafactor(model.parameters())


MORE_OPTIMIZERS = {
    "adamw-fused": lambda model: adamw(model, fused=True),
    "adamw-foreach": lambda model: adamw(model, foreach=True),
    "adamw-amsgrad": lambda model: adamw(model, amsgrad=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-2, momentum=0.9),
    "nadam": lambda model: torch.optim.NAdam(model.parameters(), lr=1e-2),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
    "adafactor-torch": lambda model: torch.optim.Adafactor(model.parameters(), lr=1e-2),
    "adafactor": _adafactor,
    "adafactor-relative": _adafactor_relative,
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, nesterov=True, momentum=0.9),
}


@pytest.mark.parametrize("module", ["bitsandbytes.optim.adamw", "torchao.optim.adam", "workflows.bellows"])
def test_an_adamw_of_a_library_that_quantizes_its_moments_is_refused_where_they_are_edited(module):
    kind = type("AdamW", (torch.optim.AdamW,), {"__module__": module})
    for recipe in ("rigl", "sr-ste"):
        model = Toy()
        if recipe == "sr-ste" or module.startswith("workflows"):
            attach(model, kind(model.parameters()), recipe, total_steps=3).finish()
            continue
        with pytest.raises(
            ValueError, match=r'AdamW keeps none .* TrainingArguments\(optim="adamw_torch"\), or a recipe'
        ):
            attach(model, kind(model.parameters()), recipe, total_steps=3)


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("optimizer", MORE_OPTIMIZERS)
def test_every_recipe_ends_sparse_under_every_optimizer(recipe, optimizer):
    model = Toy()
    before = weights(model)
    stepper, config = MORE_OPTIMIZERS[optimizer](model), short(recipe, **WINDOW)
    if config.method(NM(2, 4)).edits_moments and "adafactor" in optimizer:
        with pytest.raises(ValueError, match=r"Adafactor keeps none of those\. Use AdamW or SGD"):
            attach(model, stepper, config, total_steps=TOTAL)
        return
    engine = attach(model, stepper, config, total_steps=TOTAL)
    for _ in train(model, stepper, 0, TOTAL):
        pass
    engine.finish()
    assert_sparse(model)
    for now, then in zip(weights(model), before, strict=True):
        assert now.isfinite().all() and not torch.equal(now[now != 0], then[now != 0])


@pytest.mark.parametrize("words", [{"fused": True}, {"foreach": True}], ids=str)
@EACH_SPARSE_RECIPE
def test_fused_and_foreach_adamw_train_as_the_plain_one(recipe, words):
    one, other = (
        trained(short(recipe), optimizer=lambda model, chosen=chosen: adamw(model, **chosen))[0]
        for chosen in ({"foreach": False, "fused": False}, words)
    )
    for got, expected in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_freeze_clears_moments_of_pruned_entries_of_sharded_weights_too():
    def moments_after(shard):
        model = Toy()
        if shard:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = adamw(model, foreach=True)
        engine = attach(model, optimizer, short("ste", settle=0.5), total_steps=TOTAL)
        for _ in train(model, optimizer, 0, TOTAL):
            pass
        layers = [target.layer.weight for target in engine.plan.targets]
        return [(local(w.detach()), local(optimizer.state[w]["exp_avg"])) for w in layers]

    with group_of_one():
        for one, other in zip(moments_after(True), moments_after(False), strict=True):
            assert all(map(torch.equal, one, other)) and not one[1][one[0] == 0].any() and one[1].any()


@pytest.mark.parametrize("kind", [torch.optim.LBFGS])
def test_an_optimizer_whose_step_is_not_one_update_is_an_error(kind):
    model = Toy()
    with pytest.raises(ValueError, match=f"{kind.__name__} does not update weights once per step.*use AdamW"):
        attach(model, kind(model.parameters()), "ste", total_steps=1)
