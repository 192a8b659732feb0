"""Replayed forward passes: which blocks are computed, which outputs are cached, and what is left in the model."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nxm_hf import prune
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import find_blocks
from nxm_hf.pruning.block_replay import BlockReplay
from nxm_hf.pruning.input_statistics import InputStatistics
from tests.support.layer_inputs import Witness, literal_inputs
from tests.support.models import MODELS, make_batches, make_bert, make_model


@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_is_what_later_blocks_are_made_of_and_no_more(name):
    model, batches = make_model(name), make_batches(name)
    found = list(find_blocks(model))
    replay = BlockReplay.trace(model, batches, [block for _, block in found])
    assert replay.caches_outputs
    most = 0
    for number in replay.order:
        replay.collect(number, InputStatistics([], len(batches)))
        outputs = [output for kept in replay._outputs for output in kept.values()]
        most = max(most, sum(any(map(has_numbers, tree_leaves(output))) for output in outputs))
    stacks = 2 if name in ("t5", "bart", "funnel") else 1
    assert 0 < most <= stacks * len(batches) or len(found) == 1


def has_numbers(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() > leaf.element_size()


class Whisperers(nn.Module):
    """Blocks that talk past their outputs, so that no answer can stand in for them."""

    def __init__(self, lots: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(3))
        self.heard, self.lots, self.calls = [], lots, 0
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda module, args, number=number: self._hear(number, args[0]))

    def _hear(self, number, x):
        whisper = sum(self.heard[-1:]) if number else 0.0
        return (x + whisper,)

    def forward(self, x):
        self.heard = []
        for layer in self.layers:
            layer[0].register_forward_hook(lambda module, args, output: self.heard.append(output.detach()))
            x = layer(x)
            layer[0]._forward_hooks.clear()
        return x


def test_blocks_that_talk_past_their_outputs_are_computed_anew_each_time():
    batches = [{"x": torch.randn(5, 8)} for _ in range(2)]
    model, dense = Whisperers(), Whisperers()
    assert not BlockReplay.trace(model, batches, list(model.layers)).caches_outputs
    witness = Witness()
    prune(model, "2:4", witness, batches, inputs="dense")
    rows = literal_inputs(dense, batches, find_layers(dense))
    for inputs, layer in zip(witness.seen, find_layers(dense), strict=True):
        torch.testing.assert_close(inputs.gram, rows[layer.name].T @ rows[layer.name], rtol=1e-5, atol=1e-6)


def test_each_block_is_computed_in_its_own_pass_and_in_the_next_one():
    model = make_bert(num_hidden_layers=4).eval()
    batches, stack = make_batches("bert"), list(model.bert.encoder.layer)
    replay = BlockReplay.trace(model, batches, stack)
    computed = [0] * len(stack)
    for number, block in enumerate(stack):

        def count(module, args, number=number):
            computed[number] += 1

        block.attention.self.query.register_forward_pre_hook(count)
    for number in replay.order:
        replay.collect(number, InputStatistics([], len(batches)))
    assert computed == [2 * len(batches)] * 3 + [len(batches)]


class InPlace(nn.Module):
    """A model that changes the outputs of its blocks in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(4))

    def forward(self, x):
        first = None
        for layer in self.layers:
            x = layer(x)
            x.mul_(2).add_(1)
            first = x if first is None else first
            x = x + first  # so that the first output is used until the end
        return x


def test_cached_outputs_survive_a_model_that_changes_them_in_place():
    batches = [{"x": torch.randn(5, 8)} for _ in range(2)]
    model, dense = InPlace(), InPlace()
    assert BlockReplay.trace(model, batches, list(model.layers)).caches_outputs
    witness = Witness()
    prune(model, "2:4", witness, batches, inputs="dense")
    rows = literal_inputs(dense, batches, find_layers(dense))
    for inputs, layer in zip(witness.seen, find_layers(dense), strict=True):
        torch.testing.assert_close(inputs.gram, rows[layer.name].T @ rows[layer.name], rtol=1e-5, atol=1e-6)


def test_the_model_comes_back_without_hooks_in_the_modes_it_was_in():
    model, batches = make_model("bert"), make_batches("bert")
    model.bert.train()
    model.bert.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    forwards = ["forward" in vars(module) for module in model.modules()]
    for method, data in (("wanda", batches), ("wanda", [*batches, {"nonsense": batches[0]["input_ids"]}])):
        try:
            prune(model, "2:4", method, data)
        except ValueError as error:  # of the model's own
            assert "input_ids" in str(error)
        assert [module.training for module in model.modules()] == modes
        assert ["forward" in vars(module) for module in model.modules()] == forwards
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_forward_of_the_users_own_is_called_and_left_in_place():
    model = make_model("bert")
    block, calls = model.bert.encoder.layer[0], []
    inner = block.forward
    block.forward = mine = lambda *args, **kwargs: (calls.append(1), inner(*args, **kwargs))[1]
    prune(model, "2:4", "wanda", make_batches("bert"))
    assert block.forward is mine and len(calls) >= 6


def test_a_model_that_takes_another_way_in_other_batches_is_an_error():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x):
            for layer in self.layers if x.sum() > 0 else reversed(self.layers):
                x = layer(x)
            return x

    with pytest.raises(ValueError, match="in another order in some batches"):
        prune(Moody(), "2:4", "wanda", [{"x": torch.ones(3, 4)}, {"x": -torch.ones(3, 4)}])
