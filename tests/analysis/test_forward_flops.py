"""The FLOPs of a forward pass, against those that shapes give."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from nxm_hf import analysis
from tests.support.model_types import MIXTURES
from tests.support.models import make_bert
from tests.support.toy_training import Toy


def test_the_work_of_bert_is_what_its_shapes_say():
    """Width 32, feed-forward 64, 2 layers, 2 labels, 16 tokens."""
    width, inner, tokens, steps = 32, 64, 16, 10
    found = analysis.training_flops(make_bert(), "asp", steps, tokens=tokens)
    encoder = 2 * 2 * tokens * (4 * width * width + 2 * width * inner)
    head, attention = 2 * (width * width + 2 * width), 2 * 2 * (2 * tokens * tokens * width)
    assert (found.pruned, found.linear, found.other) == tuple(3 * steps * x for x in (encoder, head, attention))
    assert found.sparse == pytest.approx(found.pruned * 5 / 6)
    assert found.other_share == attention / (encoder + head + attention)
    assert found.overall == pytest.approx((encoder * 5 / 6 + head + attention) / (encoder + head + attention))


def test_a_larger_part_of_long_texts_is_attention():
    short, long = (analysis.training_flops(make_bert(), "asp", 1, tokens=tokens).other_share for tokens in (4, 32))
    assert short < long
    more = analysis.training_flops(make_bert(), "asp", 1, tokens=500).other_share  # it takes no more than 32
    assert more == long


def test_inputs_of_ones_own_weigh_the_layers():
    shape = dict(d_model=32, num_layers=2, d_ff=64, num_heads=2, d_kv=16, vocab_size=50)
    model = T5ForConditionalGeneration(T5Config(**shape))
    ids = torch.zeros(1, 8, dtype=torch.long)
    even = analysis.training_flops(model, "asp", 1, tokens=8)
    lopsided = analysis.training_flops(
        model, "asp", 1, inputs={"input_ids": ids.repeat(1, 4), "decoder_input_ids": ids}
    )
    cost = [{layer.name: layer.dense for layer in found.layers} for found in (even, lopsided)]
    for name in cost[0]:
        doubled = name.startswith("encoder") or "EncDecAttention.k" in name or "EncDecAttention.v" in name
        assert cost[1][name] == cost[0][name] * (4 if doubled else 1), name


def test_a_model_that_does_not_run_on_zeros_is_counted_by_its_matrices():
    found = analysis.training_flops(Toy(), "asp", 5)
    assert found.other is None and found.other_share is None and "Give inputs=" in str(found)
    assert found.pruned == 3 * 5 * 2 * 4 * 128 and found.linear == 3 * 5 * 2 * 16
    with pytest.raises(TypeError):
        analysis.training_flops(Toy(), "asp", 5, inputs={"wrong": torch.zeros(1, 8)})


def test_counting_changes_nothing():
    model = make_bert(attention_probs_dropout_prob=0.5)
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.get_rng_state()
    analysis.training_flops(model, "asp", 5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_experts_count_for_the_tokens_that_are_sent_to_them(name):
    """4 experts of width 32 and 64 in one layer; each of 16 tokens goes to two of them, through gate, up and down."""
    model, tokens = next(kind for kind in MIXTURES if kind.name == name).model(0), 16
    found = {layer.name: layer.dense for layer in analysis.training_flops(model, "asp", 1, tokens=tokens).layers}
    experts = "model.layers.0.mlp.experts"
    assert found[f"{experts}.gate_up_proj"] == 3 * 2 * tokens * 2 * 32 * 128
    assert found[f"{experts}.down_proj"] == 3 * 2 * tokens * 2 * 64 * 32
