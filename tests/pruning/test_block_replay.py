"""The walk: what enters each layer, against plain hooks on whole forwards of the model, block after block."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nxm_hf import prune, pruners
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.modules import find_blocks
from nxm_hf.patterns import parse
from nxm_hf.pruners import Inputs, OneShot
from nxm_hf.pruning.block_replay import BlockReplay
from nxm_hf.pruning.input_statistics import PANEL, Gathering, Sums
from tests.support.models import MODELS, make_batches, make_model

NO_TOKENS = (
    "pos_key_proj",
    "pos_query_proj",
    "key_proj",
    "query_proj",
)  # DeBERTa calls them with its table of positions


class Witness(OneShot):
    """A user's own method: prunes by magnitude and remembers what it was shown."""

    def __init__(self):
        self.seen: list[Inputs] = []

    def prune(self, weight, bias, inputs, pattern):
        self.seen.append(inputs)
        return pruners.make("magnitude")(weight, bias, None, pattern)


def literal_inputs(model, batches, layers) -> dict[str, torch.Tensor]:
    """Every input of each layer that is no padding, row by row, in fp64, from whole forwards with plain hooks."""
    seen = {layer.name: [] for layer in layers}
    for batch in batches:
        hooks = []
        for layer in layers:

            def see(module, args, layer=layer, batch=batch):
                seen[layer.name].extend(literal_rows(layer, args[0].detach(), batch))

            hooks.append(layer.module.register_forward_pre_hook(see))
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
    return {name: torch.stack(rows).double() for name, rows in seen.items() if rows}


def literal_rows(layer, x, batch):
    """The inputs one by one, but for those at places where the mask that the layer's tokens have is 0."""
    if isinstance(layer.module, nn.Conv1d):
        x = x.permute(0, 2, 1)
    mask = batch.get("attention_mask")
    if ".decoder." in f".{layer.name}" and not any(part in layer.name for part in ("encoder_attn.k", "encoder_attn.v")):
        mask = batch.get("decoder_attention_mask", mask)
    if "EncDecAttention.k" in layer.name or "EncDecAttention.v" in layer.name:
        mask = batch["attention_mask"]
    if mask is not None and x.dim() == 2 and len(x) == mask.numel():  # OPT's feed-forward
        x = x.reshape(*mask.shape, -1)
    if mask is None or x.shape[:2] != mask.shape:
        return list(x.reshape(-1, x.shape[-1]))
    return [x[row, place] for row in range(len(mask)) for place in range(mask.shape[1]) if mask[row, place]]


def grouped(layer) -> bool:
    return isinstance(layer.module, nn.Conv1d) and layer.module.groups > 1


def test_a_gram_matrix_that_is_summed_in_panels_is_whole():
    x = torch.randn(30, 2 * PANEL + 76)
    sums = Sums(x.shape[1], x.device)
    for part in x.split(20):
        sums.add(part, 0)
    torch.testing.assert_close(sums.gram, x.double().T @ x.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.gram, sums.gram.T)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_method_is_shown_is_what_enters_the_layers_of_the_dense_model(name):
    model, batches = make_model(name), make_batches(name)
    layers = find_layers(model)
    rows = literal_inputs(model, batches, layers)
    witness = Witness()
    outcome = prune(model, "2:4", witness, batches, inputs="dense")
    expected = [layer for layer in layers if layer.name in rows and not grouped(layer)]
    assert len(witness.seen) == len(expected) > 5
    shown = dict(zip([layer.name for layer in in_order(make_model(name), expected)], witness.seen, strict=True))
    for layer in expected:
        x, inputs = rows[layer.name], shown[layer.name]
        assert inputs.count == len(x)
        torch.testing.assert_close(inputs.gram.double(), x.T @ x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(inputs.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    assert {one.name: one.tokens for one in outcome.layers} == {
        layer.name: len(rows[layer.name]) if layer in expected else None for layer in layers
    }


def in_order(model, layers):
    """The layers as the walk meets them: its blocks as they are called, of each the layers as they are listed."""
    places = [path for path, _ in find_blocks(model)]
    return sorted(
        layers, key=lambda layer: next(n for n, path in enumerate(places) if f"{layer.name}.".startswith(f"{path}."))
    )


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_pruned_as_by_hand_with_a_whole_forward_for_each_block(name, inputs):
    model, batches = make_model(name), make_batches(name)
    by_hand, dense = copy.deepcopy(model), copy.deepcopy(model)
    prune(model, "2:4", "wanda", batches, inputs=inputs)
    layers, pattern = find_layers(by_hand), parse("2:4")
    for path, _ in find_blocks(by_hand):
        own = [layer for layer in layers if layer.name.startswith(f"{path}.")]
        source = by_hand if inputs == "pruned" else dense
        twins = [layer for layer in find_layers(source) if layer.name.startswith(f"{path}.")]
        rows = literal_inputs(source, batches, twins)
        for layer in own:
            weight = layer.matrix(layer.weight.data)
            scores = weight.abs()
            if layer.name in rows and not grouped(layer):
                scores = scores * rows[layer.name].square().sum(0).sqrt().float()
            weight.copy_(torch.where(pattern.mask(scores), weight, 0))
    for layer, other in zip(layers, find_layers(model), strict=True):
        assert torch.equal(layer.weight != 0, other.weight != 0), layer.name
        assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_is_what_later_blocks_are_made_of_and_no_more(name):
    model, batches = make_model(name), make_batches(name)
    found = list(find_blocks(model))
    walk = BlockReplay(model, batches, [block for _, block in found])
    assert walk.keeps
    most = 0
    for number in walk.order:
        walk.gather(number, Gathering([], len(batches)))
        outputs = [output for kept in walk._kept for output in kept.values()]
        most = max(most, sum(any(map(has_numbers, tree_leaves(output))) for output in outputs))
    stacks = 2 if name in ("t5", "bart", "funnel") else 1
    assert 0 < most <= stacks * len(batches) or len(found) == 1


def has_numbers(leaf) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.untyped_storage().nbytes() > leaf.element_size()


def test_layers_that_share_an_input_share_one_gram_matrix():
    witness = Witness()
    prune(make_model("bert"), "2:4", witness, make_batches("bert"))
    query, key, value, output, up, _ = witness.seen[:6]
    assert query is key and key is value and output is not value and up.gram is not query.gram


def test_a_model_with_tokens_first_and_one_with_flat_tokens_leave_padding_out_too():
    class Flat(nn.Module):
        def __init__(self, lay_out):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2))
            self.table, self.lay_out = nn.Embedding(50, 4), lay_out

        def forward(self, input_ids, attention_mask):
            x = self.lay_out(self.table(input_ids))
            for layer in self.layers:
                x = layer(x)
            return x

    batch = make_batches("bert", 1)[0]
    for lay_out in (lambda x: x, lambda x: x.transpose(0, 1), lambda x: x.flatten(0, 1)):
        torch.manual_seed(0)
        model, witness = Flat(lay_out), Witness()
        kept = model.table(batch["input_ids"])[batch["attention_mask"].bool()]
        prune(model, "2:4", witness, [batch])
        assert witness.seen[0].count == 13
        torch.testing.assert_close(witness.seen[0].gram.float(), kept.T @ kept)


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
    assert not BlockReplay(model, batches, list(model.layers)).keeps
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
