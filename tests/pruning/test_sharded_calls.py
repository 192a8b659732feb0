"""Calls of modules that FSDP2 has sharded, by one process."""

import gc
import weakref
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from nxm_hf.layers.sharding import reshard
from nxm_hf.pruning.sharded_calls import completed_calls, replaced_calls
from tests.support.group_of_one import group_of_one
from tests.support.sharded_loops import Uneven


class Stopped(BaseException):
    """Ends a call early."""


def sharded(shards) -> nn.Module:
    """A model of two sharded blocks in a sharded part of the model."""
    model = nn.Sequential(Uneven())
    for module in (*model[0].layers, model[0], model):
        fully_shard(module, mesh=shards.mesh)
    return model


@pytest.mark.parametrize("own", [False, True])
def test_replaced_calls_are_put_back(own):
    with group_of_one() as shards:
        model, x = sharded(shards), torch.randn(2, 8)
        plain = Uneven()
        for blocks, whole, name in (
            (list(plain.layers), plain, "forward"),
            (list(model[0].layers), model, "_compiled_call_impl"),
        ):
            if own:
                setattr(blocks[0], name, blocks[0].forward if name == "forward" else blocks[0]._call_impl)
            before, expected = [dict(vars(block)) for block in blocks], whole(x)
            with replaced_calls(blocks, lambda number, forward: lambda x: forward(x) + number):
                assert torch.allclose(whole(x), expected + 1)
            assert [dict(vars(block)) for block in blocks] == before
            assert torch.equal(whole(x), expected)


def test_a_replaced_call_gathers_nothing_unless_it_computes():
    with group_of_one() as shards:
        model, gathered = sharded(shards), []
        blocks = list(model[0].layers)
        for block in blocks:  # after FSDP2's own hook, which gathers
            block.register_forward_pre_hook(lambda block, _: gathered.append(block))

        def second(number, forward):
            return forward if number == 1 else lambda x: x

        with replaced_calls(blocks, second):
            model(torch.randn(2, 8))
        assert gathered == blocks[1:]


@pytest.mark.parametrize("error", [Stopped, KeyError])
def test_fsdp_completes_a_call_that_is_broken_off_and_the_reason_is_raised(error):
    with group_of_one() as shards:
        model, x = sharded(shards), torch.randn(2, 8)
        blocks = list(model[0].layers)
        expected = model(x)

        def broken(number, forward):
            def call(*args):
                if number == 1:
                    raise error
                return forward(*args)

            return call

        for _ in range(2):
            with (
                pytest.raises(error),
                torch.no_grad(),
                replaced_calls(blocks, broken),
                completed_calls(model, blocks),
            ):
                model(x)
            state = model._get_fsdp_state()
            assert state._state_ctx.iter_forward_root is None and state._training_state.name == "IDLE"
            assert model[0]._get_fsdp_state()._training_state.name == "IDLE"
        reshard(model)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert "forward" not in vars(model) and torch.equal(model(x), expected)


def test_what_a_broken_call_held_is_freed_at_once():
    with group_of_one() as shards:
        model, held = sharded(shards), torch.zeros(3)
        seen, blocks = weakref.ref(held), list(model[0].layers)

        def broken(number, forward, held=held):
            def call(*args):
                inside = held  # a local of a frame of the traceback
                raise Stopped(len(inside))

            return call

        gc.disable()
        try:
            with suppress(Stopped), torch.no_grad(), replaced_calls(blocks, broken), completed_calls(model, blocks):
                model(torch.randn(2, 8))
            del broken, held
            assert seen() is None
        finally:
            gc.enable()


def test_an_error_of_the_caller_is_raised_as_it_is():
    model = Uneven()
    with pytest.raises(ZeroDivisionError), completed_calls(model, list(model.layers)):
        raise ZeroDivisionError
