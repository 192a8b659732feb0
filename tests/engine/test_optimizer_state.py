"""Optimizers: which can be used, and what recipes do to their moments."""

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nxm_hf import attach
from nxm_hf.engine.optimizer_state import (
    FIRST_MOMENTS,
    SECOND_MOMENTS,
    SQUARED_GRADIENTS,
    Moments,
    check_moments,
    check_optimizer,
    is_adaptive,
    keeps_moments,
    known_moments,
    loss_scale,
    overflowed,
    unwrapped,
)
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.sharding import local
from nxm_hf.patterns import NM
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOW
from tests.support.group_of_one import group_of_one
from tests.support.models import make_bert, make_model
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


ALL_MOMENTS = FIRST_MOMENTS + SECOND_MOMENTS


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("which", ["first", "both"])
def test_moments_are_cleared_by_their_names_where_they_are_asked_to_be(which, transposed):
    model = make_model("gpt2") if transposed else make_bert()
    layer, optimizer = find_layers(model)[0], torch.optim.AdamW(model.parameters())
    others = {"step": torch.tensor(3.0), "row": torch.ones(4, 1), "exp_avg_other": torch.ones(layer.weight.shape)}
    state = {name: torch.rand(layer.weight.shape) + 1 for name in ALL_MOMENTS}
    optimizer.state[layer.weight].update({name: x.clone() for name, x in {**state, **others}.items()}, exp_inf=None)
    where = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    Moments(optimizer, layer).clear(where, which)
    cleared = FIRST_MOMENTS if which == "first" else ALL_MOMENTS
    for name, before in state.items():
        if name == "exp_inf":
            continue
        now, then = (layer.matrix(x) for x in (optimizer.state[layer.weight][name], before))
        assert torch.equal(now, torch.where(where, 0.0, then) if name in cleared else then), name
    assert all(torch.equal(optimizer.state[layer.weight][name], value) for name, value in others.items())
    found = known_moments(optimizer.state[layer.weight])
    assert [id(x) for x in found] == [id(optimizer.state[layer.weight][n]) for n in ALL_MOMENTS if n != "exp_inf"]


def test_squared_gradients_are_the_first_that_are_kept_for_each_entry():
    model = make_model("gpt2")
    layer, optimizer = find_layers(model)[0], torch.optim.AdamW(model.parameters())
    moments = Moments(optimizer, layer)
    assert moments.squares is None
    for name in reversed(SQUARED_GRADIENTS):
        optimizer.state[layer.weight][name] = torch.rand(layer.weight.shape)
        assert torch.equal(moments.squares, layer.matrix(optimizer.state[layer.weight][name]))
    foreign = transformers.optimization.Adafactor(model.parameters())
    foreign.state[layer.weight]["exp_avg_sq"] = torch.ones(layer.weight.shape)
    assert Moments(foreign, layer).squares is None and not keeps_moments(foreign) and keeps_moments(optimizer)


def test_an_optimizer_says_whether_it_skips_a_step_and_which_scale_its_gradients_have():
    optimizer = adamw(Toy())
    assert not overflowed(optimizer) and loss_scale(optimizer) == 1.0
    for found in (0.0, 1.0):
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(found), torch.tensor(1024.0)
        assert overflowed(optimizer) is bool(found) and loss_scale(optimizer) == 1024.0
    optimizer.found_inf = optimizer.grad_scale = None
    assert overflowed(optimizer) is False and loss_scale(optimizer) == 1.0
    assert [is_adaptive(make(Toy())) for make in MORE_OPTIMIZERS.values()] == [
        name != "sgd" for name in MORE_OPTIMIZERS
    ]


def test_the_wrapper_of_accelerate_is_taken_off():
    optimizer = adamw(Toy())
    assert unwrapped(Accelerator(cpu=True).prepare_optimizer(optimizer)) is optimizer is unwrapped(optimizer)


@pytest.mark.parametrize("name", ["AdaLomo", "AdamWScheduleFree", "Schedule_Free", "LayerWiseDummy", "MyLBFGS"])
def test_optimizers_that_do_not_update_once_in_a_step_are_known_by_their_names(name):
    with pytest.raises(ValueError, match=f"^{name} does not update weights once"):
        check_optimizer(type(name, (torch.optim.SGD,), {})(Toy().parameters(), lr=0.1))


def test_an_optimizer_that_has_to_be_put_into_training_mode_is_an_error():
    optimizer = type("Averaging", (torch.optim.SGD,), {"train": lambda self: None})(Toy().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^Averaging does not update"):
        check_optimizer(optimizer)
    check_optimizer(type("Plain", (torch.optim.SGD,), {"train": 3})(Toy().parameters(), lr=0.1))


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


def test_one_method_that_edits_moments_is_enough_to_need_them():
    methods = [config.method(NM(2, 4)) for config in (short("ste"), short("rigl"))]
    assert [method.edits_moments for method in methods] == [False, True]
    check_moments(adamw(Toy()), methods)
    check_moments(_adafactor(Toy()), methods[:1])
    with pytest.raises(ValueError, match=r"Adafactor keeps none of those"):
        check_moments(_adafactor(Toy()), methods)
