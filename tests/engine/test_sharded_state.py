"""The state of sharded weights: what processes put together is the state of one, and it is cut into their parts again.

Trainings of several processes are tested by tests/distributed.
"""

from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nxm_hf import NxMConfig
from nxm_hf.engine.sharded_state import cut, cut_optimizer, gather, gather_optimizer
from nxm_hf.layers.plan import Plan
from nxm_hf.layers.sharding import local
from nxm_hf.methods import NO_CHANGE
from tests.support.group_of_one import group_of_one
from tests.support.models import make_model
from tests.support.process_threads import Joined, in_threads
from tests.support.toy_training import Toy, adamw, same, train


def plan_of(kind):
    """Return a plan of one layer, whose name has a slash."""
    (target, *_) = Plan.of(Toy() if kind == "linear" else make_model("gpt2"), NxMConfig("asp")).targets
    target = replace(target, layer=replace(target.layer, name="odd/name"))
    return replace(Plan.of(Toy(), NxMConfig("asp")), targets=(target,)), target.layer.shape


def state_of(shape):
    """Return the state of one process: matrices, counts of changes, numbers, a bias, and what is of no layer here."""
    return {
        "odd/name/dense": torch.randn(shape),
        "odd/name/mask": torch.rand(shape) > 0.5,
        "odd/name/moved": torch.tensor([5, 3, 9]),
        "odd/name/rho": torch.tensor(0.25, dtype=torch.float64),
        "odd/name/bias": torch.randn(shape[0]),
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
@pytest.mark.parametrize("kind", ["linear", "transposed"])
def test_what_processes_put_together_is_what_was_cut_into_their_parts(kind, processes, monkeypatch):
    """A process that does not keep the state takes part all the same; else the others would wait for it."""
    plan, shape = plan_of(kind)
    state = state_of(shape)

    def act(shards, number):
        here = replace(plan, shards=Joined(shards.model, shards.mesh))
        parts = {name: cut(here, name, tensor) for name, tensor in state.items()}
        return parts, gather(here, parts), gather(here, parts, keep=number == 1)

    every = in_threads(monkeypatch, 1, processes, act)
    dimension = int(kind == "transposed")
    for number, (parts, whole, kept) in enumerate(every):
        assert whole.keys() == state.keys() and all(torch.equal(whole[name], state[name]) for name in state)
        assert kept.keys() == (state.keys() if number == 1 else set())
        for name in ("odd/name/rho", "odd/name/bias"):
            assert torch.equal(parts[name], state[name])
        assert parts["odd/name/moved"].tolist() == ([5, 3, 9] if number == 0 else [0, 0, 0]), "the sum is that of all"
    for name in ("odd/name/dense", "odd/name/mask"):
        pieces = [parts[name] for parts, *_ in every]
        assert torch.equal(torch.cat(pieces, dimension), state[name])
        places = {piece.untyped_storage().data_ptr() for piece in pieces if piece.numel()}
        assert state[name].untyped_storage().data_ptr() not in places, "the whole can be freed"


def test_what_is_of_no_layer_of_the_plan_is_not_cut():
    plan, _ = plan_of("linear")
    with group_of_one() as group:
        other = torch.ones(2, 3)
        assert cut(replace(plan, shards=group), "another/mask", other) is other


def test_before_there_is_a_second_mask_in_any_process_there_is_no_change_of_all(monkeypatch):
    plan, _ = plan_of("linear")

    def act(shards, number):
        here, name = replace(plan, shards=shards), "odd/name/moved"
        found = []
        for change in ([0, 0, 1], [0, 0, 1] if number else [2, 1, 4]):
            found.append(gather(here, {name: torch.tensor(change)})[name])
        return found

    for none, some in in_threads(monkeypatch, 1, 3, act):
        assert torch.equal(none, NO_CHANGE) and none is not NO_CHANGE and some.tolist() == [2, 1, 6]


def test_whole_weights_are_neither_gathered_nor_cut():
    plan, shape = plan_of("linear")
    state = state_of(shape)
    assert gather(plan, state) is state and all(cut(plan, name, tensor) is tensor for name, tensor in state.items())


def test_moments_are_gathered_and_cut_as_their_parameters_are():
    with group_of_one() as group:
        model = Toy()
        outside = model.head.weight
        fully_shard(model, mesh=group.mesh, ignored_params={outside})
        optimizer = adamw(model)
        for _ in train(model, optimizer, 0, 2):
            pass
        assert gather_optimizer(optimizer, keep=False)["state"] == {number: {} for number in range(10)}
        found, packed = gather_optimizer(optimizer, keep=True), optimizer.state_dict()
        assert found["param_groups"] == packed["param_groups"] and found["state"].keys() == packed["state"].keys()
        for number, slots in packed["state"].items():
            assert same(found["state"][number], {name: local(value) for name, value in slots.items()})
            assert not any(isinstance(value, DTensor) for value in found["state"][number].values())
        before = {parameter: dict(slots) for parameter, slots in optimizer.state.items()}
        for slots in optimizer.state.values():
            slots.update({name: local(value).clone() for name, value in slots.items()}, of_another_kind=3)
        cut_optimizer(optimizer)
        for parameter, slots in optimizer.state.items():
            assert slots.pop("of_another_kind") == 3 and isinstance(parameter, DTensor) == (parameter is not outside)
            for name, value in slots.items():
                assert isinstance(value, DTensor) == isinstance(before[parameter][name], DTensor)
                assert torch.equal(local(value), local(before[parameter][name]))
