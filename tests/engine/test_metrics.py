"""Metrics that are logged beside the loss."""

import math

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from nxm_hf import NxMConfig, attach
from nxm_hf.engine.metrics import _is_nan_in_any, mask_movement, residual
from nxm_hf.layers.plan import Plan, Target
from nxm_hf.layers.sharding import local
from nxm_hf.methods import Slot
from nxm_hf.patterns import parse
from tests.support.grids import EACH_SPARSE_RECIPE, WINDOWS
from tests.support.group_of_one import group_of_one
from tests.support.process_threads import in_threads
from tests.support.toy_training import (
    TOTAL,
    Toy,
    adamw,
    short,
    train,
    trained,
)

LADDERS = ("structure-decay", "gradual", "acdc")  # whose masks keep now more and now less


@EACH_SPARSE_RECIPE
@WINDOWS
def test_metrics_say_where_the_run_is(recipe, window):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, **window), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        metrics = engine.metrics()
        assert metrics["nxm/density"] == 0.5
        assert {type(value) for value in metrics.values()} <= {int, float}, "a log is JSON"
        if recipe not in LADDERS:
            assert metrics["nxm/flip_rate"] == pytest.approx(2 * (1 - metrics["nxm/mask_similarity"]) * 0.5)
        assert 0 <= metrics["nxm/flip_rate"] <= 1 and 0 <= metrics["nxm/residual"] < 1
        assert metrics["nxm/phase"] == ("warmup", "recipe", "settle").index(engine.phase)
        if recipe not in (*LADDERS, "reset"):
            sparse = recipe in ("alps", "asp", "set", "rigl") and engine.phase == "recipe"
            assert (metrics["nxm/residual"] == 0) == (sparse or engine.phase == "settle")
        with engine.deployed():
            assert engine.metrics() == metrics


@EACH_SPARSE_RECIPE
def test_movement_is_counted_in_the_masks_before_and_after_their_last_update(recipe):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, warmup=0.25), total_steps=TOTAL)
    masks, expected = None, (1.0, 0.0)
    for _ in train(model, optimizer, 0, TOTAL):
        state = engine.tensors()
        named = [state.get(f"{target.name}/mask") for target in engine.plan.targets]
        now = None if any(mask is None for mask in named) else torch.cat([mask.flatten() for mask in named])
        if masks is not None and engine.phase == "recipe" and not torch.equal(masks, now):
            came, left = int((now & ~masks).sum()), int((masks & ~now).sum())
            expected = (1 - left / int(masks.sum()), (came + left) / len(now))
            found = engine.metrics()
            assert (found["nxm/mask_similarity"], found["nxm/flip_rate"]) == pytest.approx(expected, abs=1e-12)
        masks = None if now is None else now.clone()
    still = ("alps", "asp", "admm", "fade", "fix")  # within the phase of the recipe; ADMM keeps no mask
    assert recipe in still or expected != (1.0, 0.0), "no mask has moved"


@EACH_SPARSE_RECIPE
def test_the_residual_is_the_share_of_the_norm_that_pruning_takes(recipe):
    _, engine = trained(short(recipe), steps=3, total=TOTAL)
    lost = total = 0.0
    for target, weight in engine.trained_weights():
        exact = weight.double()
        lost += float((exact - target.pattern.project(exact)).square().sum())
        total += float(exact.square().sum())
    assert engine.metrics()["nxm/residual"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)


def test_the_residual_of_all_weights_is_that_of_the_weights_in_one_row():
    targets = Plan.of(Toy(), NxMConfig("asp", "1:4")).targets
    dense = [(target, torch.randn(target.layer.shape)) for target in targets]
    sparse = [(target, target.pattern.project(weight)) for target, weight in dense]
    lost = sum((weight - kept).square().sum() for (_, weight), (_, kept) in zip(dense, sparse, strict=True))
    share = (lost / sum(weight.square().sum() for _, weight in dense)) ** 0.5
    assert residual(iter(dense)) == pytest.approx(float(share), rel=1e-5) and residual(iter(sparse)) == 0.0
    assert residual((target, torch.zeros(target.layer.shape)) for target in targets) == 0.0
    dense[1][1][3, 3] = math.nan
    assert math.isnan(residual(dense))


def test_movement_is_counted_over_all_layers_and_a_layer_without_masks_has_not_moved():
    targets = Plan.of(Toy(), NxMConfig("asp")).targets
    entries = sum(target.numel for target in targets)
    states = {target.name: {} for target in targets}
    assert mask_movement(iter(targets), states) == {"nxm/mask_similarity": 1.0, "nxm/flip_rate": 0.0}
    alone = {targets[0].name: {Slot.MASK_CHANGE: torch.tensor([1, 1, 1])}}  # a mask of one entry, which has moved
    assert mask_movement(targets[:1], alone) == {"nxm/mask_similarity": 0.0, "nxm/flip_rate": 2 / targets[0].numel}
    for number, name in enumerate(states, 1):
        states[name][Slot.MASK_CHANGE] = torch.tensor([number, 10 * number, 100 * number])
    assert mask_movement(iter(targets), states) == {"nxm/mask_similarity": 0.9, "nxm/flip_rate": 110 / entries}


@pytest.mark.parametrize("recipe", ["ste", "admm"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured:0.5"])
def test_metrics_of_sharded_weights_are_those_of_whole_ones_and_a_nan_is_no_error(recipe, pattern):
    found = []
    with group_of_one() as group:
        for shards in (False, True):
            model = Toy()
            if shards:
                fully_shard(model, mesh=group.mesh)
            optimizer = adamw(model)
            engine = attach(model, optimizer, short(recipe, pattern), total_steps=TOTAL)
            for _ in train(model, optimizer, 0, 5):
                pass
            found.append(engine.metrics())
            found.append(mask_movement(engine.plan.targets, engine._states))
            found.append({"residual": residual(engine.trained_weights())})
            for name in ("weight", "dense", "r"):
                if (tensor := engine.tensors().get(f"blocks.0.up/{name}")) is not None:
                    local(tensor).view(-1)[7] = math.nan
            assert math.isnan(engine.metrics()["nxm/residual"])
    for whole, sharded in zip(found[:3], found[3:], strict=True):
        assert whole == pytest.approx(sharded, rel=1e-12)  # sums are exchanged in double precision
        assert {type(value) for value in sharded.values()} <= {int, float}


def test_movement_in_sharded_weights_is_exact_however_many_entries_they_have():
    """Also in more than single precision can count."""
    with group_of_one() as group:
        model = Toy()
        fully_shard(model, mesh=group.mesh)
        targets = Plan.of(model, NxMConfig("asp")).targets
        change = torch.tensor([2**25 + 1, 2**26 + 1, 2**27])
        states = {target.name: {Slot.MASK_CHANGE: change} for target in targets}
        found, entries = mask_movement(targets, states), sum(target.numel for target in targets)
    expected = {"nxm/mask_similarity": 1 - (2**26 + 1) / 2**27, "nxm/flip_rate": 4 * (3 * 2**25 + 2) / entries}
    assert len(targets) == 4 and found == expected


@pytest.mark.parametrize(("pattern", "together"), [("2:4", False), ("unstructured:0.5", True)])
def test_a_nan_in_one_process_is_one_in_all_if_they_solve_masks_together(pattern, together, monkeypatch):
    """Or one of them would wait for ever for the others, which have left."""
    layer = Plan.of(Toy(), NxMConfig("asp")).targets[0].layer

    def act(shards, number):
        return _is_nan_in_any([Target(layer, parse(pattern), shards)], math.nan if number == 1 else 3.0)

    assert in_threads(monkeypatch, 1, 3, act) == [together, True, together]
    assert _is_nan_in_any([], math.nan) and not _is_nan_in_any([], 1.0)


@pytest.mark.parametrize("pattern", ["2:4", "2:4-transposable"])
@pytest.mark.parametrize("dual", [True, False])
def test_disagreement_is_the_distance_of_w_from_the_sparse_z(pattern, dual):
    settings = {"rho": 0.1, "steps": 2, "dual": dual, "start": "C"}
    _, engine = trained(NxMConfig("admm", pattern, settings=settings), steps=7, total=TOTAL)
    metrics, tensors = engine.metrics(), engine.tensors()
    apart = total = 0.0
    for target in engine.plan.targets:
        w, r = tensors[f"{target.name}/weight"].double(), tensors[f"{target.name}/r"].double()
        z = target.pattern.project(r)
        assert target.pattern.violations(z) == 0
        apart, total = apart + float((w - z).square().sum()), total + float(w.square().sum())
    assert metrics["nxm/disagreement"] == pytest.approx((apart / total) ** 0.5, rel=1e-5)
    assert metrics["nxm/iterations"] == 1 + 7 // 2  # that of the start is one


@EACH_SPARSE_RECIPE
def test_only_admm_logs_iterations_and_only_while_it_runs(recipe):
    model = Toy()
    optimizer = adamw(model)
    engine = attach(model, optimizer, short(recipe, settle=0.5), total_steps=TOTAL)
    for _ in train(model, optimizer, 0, TOTAL):
        in_admm = recipe == "admm" and engine.phase == "recipe"
        assert ("nxm/iterations" in engine.metrics()) == ("nxm/disagreement" in engine.metrics()) == in_admm


def test_logging_a_nan_in_the_variables_of_admm_alone_is_no_error():
    _, engine = trained(short("admm"), steps=2, total=TOTAL)
    engine.tensors()["blocks.0.up/r"].view(-1)[3] = math.nan
    metrics = engine.metrics()
    assert math.isnan(metrics["nxm/disagreement"]) and not math.isnan(metrics["nxm/residual"])


@EACH_SPARSE_RECIPE
def test_logging_a_nan_is_no_error(recipe):
    """It is the next mask that refuses it, and names the layer; a log would not."""
    _, engine = trained(short(recipe), steps=2, total=TOTAL)
    largest = engine.tensors()["blocks.0.up/weight"].abs().argmax()
    for slot in ("weight", "dense", "r"):
        if (tensor := engine.tensors().get(f"blocks.0.up/{slot}")) is not None:
            tensor.view(-1)[largest] = math.nan
    assert math.isnan(engine.metrics()["nxm/residual"])
    with pytest.raises(ValueError, match=r"blocks\.0\.up"):
        engine.finish()
