"""Which layers are coupled by channels, and which cannot be reordered."""

import pytest
import torch
from torch import nn

from nxm_hf import permute
from nxm_hf.permutation.coupled_layers import find_coupled_layers
from tests.support.permutation import FREE, FUNNEL, GPT, TINY, answer, make, relative


def test_heads_that_share_a_value_are_weighed_together():
    model = make(*FREE["llama with shared values"])
    coupled = next(c for c in find_coupled_layers(model)[0] if c.consumer.role == "attention_output")
    assert coupled.columns.shape == (4, 16) and coupled.section == 8
    matrix = coupled.consumer.weight.detach().abs()
    for channel in (0, 5, 9, 15):
        head, inside = divmod(channel, 8)
        columns = [(4 * head + query) * 8 + inside for query in range(4)]
        assert torch.equal(coupled.scores()[channel], matrix[:, columns].t().flatten())


@pytest.mark.parametrize(
    "kind, kwargs, left",
    [
        ("GPTNeoXForCausalLM", dict(TINY, eos_token_id=2), 2),  # values stand between queries and keys, head by head
        ("FalconForCausalLM", dict(TINY, eos_token_id=2), 2),  # which writes into the output of its FFN, in place
        ("CodeGenForCausalLM", dict(GPT, n_head=4, rotary_dim=4), 2),
        ("ConvBertForSequenceClassification", TINY, 2),  # a convolution writes half of what the output reads
        ("RoFormerForSequenceClassification", dict(TINY, rotary_value=True), 2),  # values are turned in pairs
        ("FunnelForSequenceClassification", FUNNEL, 2),
        ("SqueezeBertForSequenceClassification", dict(TINY, embedding_size=32), 4),  # convolutions in groups
    ],
)
def test_attention_of_another_kind_is_left_alone(kind, kwargs, left):
    model = make(kind, kwargs)
    before = answer(model)
    report = permute(model, "2:4")
    assert len(report.skipped) == left and len(report.layers) == 4 - left
    assert relative(answer(model), before) < 1e-5


def test_an_adapter_is_left_alone():
    model = make(*FREE["bert"])
    block = model.bert.encoder.layer[0].output

    class Adapted(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer, self.lora_A = base_layer, nn.ModuleDict({"default": nn.Linear(64, 4, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(4, 32, bias=False)})

        def forward(self, x):
            return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    block.dense = Adapted(block.dense)
    before = answer(model)
    report = permute(model)
    assert report.skipped == {"bert.encoder.layer.0.output.dense": "bert.encoder.layer.0.output.dense has an adapter"}
    assert relative(answer(model), before) < 1e-5
