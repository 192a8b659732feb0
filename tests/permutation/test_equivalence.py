"""The check on one example: what it notices, and what it needs."""

import re

import pytest
import torch
from torch import nn

from nxm_hf import permute
from tests.support.models import make_bert
from tests.support.permutation import (
    FREE,
    SEQ,
    TINY,
    answer,
    make,
    relative,
)


def tied(model):
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight


def lent(model):
    """The second block's FFN reads the first one's hidden units."""
    layers = model.bert.encoder.layer
    layers[1].intermediate = layers[0].intermediate


def frozen(model):
    model.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)


def diverged(model):
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()
    model.bert.encoder.layer[0].intermediate.dense.bias.data[3] = -float("inf")  # a unit that never fires


class Scaled(nn.Module):
    """An activation with a number of its own for each channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.9, 1.1, 64))

    def forward(self, x):
        return torch.tanh(x) * self.scale


class Paired(nn.Module):
    """An activation over pairs of channels."""

    def forward(self, x):
        return (x.unflatten(-1, (-1, 2)).softmax(-1) * 2 - 1).flatten(-2)


def with_activation(kind):
    def change(model):
        model.bert.encoder.layer[0].intermediate.intermediate_act_fn = kind()

    return change


ALL = ("0.output", "0.attention.output", "1.attention.output", "1.output")


LEFT = {
    "tied": (tied, ("0.output", "1.output"), "is tied to another layer|no layer is known to lead into it"),
    "lent": (lent, ALL, "something else .* reads|no layer is known"),
    "frozen": (frozen, ("0.output",), "layer.0.output.dense is frozen"),
    "infinite": (diverged, ("0.output",), "layer.0.intermediate.dense holds NaN or infinities"),
    "a scale in between": (with_activation(Scaled), ("0.output",), "does not treat all channels alike"),
    "pairs": (with_activation(Paired), ("0.output",), "does not treat all channels alike"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_free_is_left_alone_and_reported(name):
    change, left, reason = LEFT[name]
    model = make(*FREE["bert"])
    change(model)
    before, weights = answer(model), {n: t.clone() for n, t in model.state_dict().items()}
    report = permute(model, "2:4")
    assert {key.removeprefix("bert.encoder.layer.").removesuffix(".dense") for key in report.skipped} == set(left)
    for key, why in report.skipped.items():
        assert re.search(reason, why), why
        assert torch.equal(model.state_dict()[f"{key}.weight"], weights[f"{key}.weight"])
        assert f"{key}: {why}." in str(report)
    assert len(report.layers) == 4 - len(left)
    assert torch.equal(answer(model), before) if len(left) == 4 else relative(answer(model), before) < 1e-5


def test_a_norm_between_activation_and_output_is_seen():
    model = make("BitNetForCausalLM", dict(TINY, num_key_value_heads=2, eos_token_id=2))
    for name, parameter in model.named_parameters():
        if "sub_norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    before = answer(model)
    assert len(permute(model).skipped) == 4 and torch.equal(answer(model), before)


def test_a_model_that_no_example_fits_asks_for_one():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.5), 1)
    with pytest.raises(ValueError, match=r"could not be run on an example.* Give inputs=, one batch as a dict"):
        permute(model)
    x = torch.randn(2, 3, 8)
    before = model.eval()(src=x)
    assert len(permute(model.train(), inputs={"src": x}).layers) == 1
    assert relative(model.eval()(src=x), before) < 1e-5


def test_a_model_that_answers_with_nan_is_an_error():
    model = make_bert()
    model.bert.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"answers an example with NaN. Load an earlier"):
        permute(model)


def test_experts_that_no_token_reaches_are_left_alone():
    kwargs = dict(SEQ, num_experts=8, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=64)
    model = make("SwitchTransformersForConditionalGeneration", kwargs)
    report = permute(model, inputs={"input_ids": torch.tensor([[5]]), "decoder_input_ids": torch.tensor([[3]])})
    assert report.skipped and all("experts" in name for name in report.skipped)
