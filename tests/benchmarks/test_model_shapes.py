"""Models without weights: the small baseline, FLOPs and numbers of masks."""

import json
import math

import pytest
import torch
import transformers

from benchmarks.glue.comparison.model_shapes import Shape, flops, masks_per_weight, narrower_shape, nonzero_weights
from nxm_hf import NxMConfig, attach
from tests.support.example_scripts import run_glue

WIDE = dict(hidden_size=96, num_attention_heads=6, intermediate_size=384, num_hidden_layers=3, vocab_size=300)


FAMILIES = {
    "bert": transformers.BertConfig(**WIDE),
    "distilbert": transformers.DistilBertConfig(dim=96, n_heads=6, hidden_dim=384, n_layers=3, vocab_size=300),
    "roberta": transformers.RobertaConfig(**WIDE),
    "electra": transformers.ElectraConfig(**WIDE, embedding_size=48),
    "deberta": transformers.DebertaV2Config(**WIDE, pooler_hidden_size=96),
    "modernbert": transformers.ModernBertConfig(**WIDE, pad_token_id=0, cls_token_id=1, sep_token_id=2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_small_model_has_as_many_weights_as_the_sparse_one_has_non_zeros(family, tmp_path):
    FAMILIES[family].save_pretrained(tmp_path)
    shape = Shape.from_options(str(tmp_path), "mnli", ())
    for pattern, most in (("2:4", 0.01), ("1:4", 0.02)):
        narrow = narrower_shape(shape, pattern)
        wanted = nonzero_weights(shape, json.dumps(pattern))
        assert narrow.weights == pytest.approx(wanted, rel=most) and narrow.weights < shape.weights
        config = run_glue.AutoConfig.from_pretrained(tmp_path, num_labels=3, **json.loads(narrow.overrides))
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        logits = model(torch.arange(2 * 7).view(2, 7) + 5).logits
        assert logits.shape == (2, 3) and sum(p.numel() for p in model.parameters()) == narrow.weights


def test_the_sparse_models_non_zeros_are_those_that_pruning_leaves(model):
    bert = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    for parameter in bert.parameters():  # whose initial zeros would be counted as pruned
        parameter.data.normal_()
    optimizer = torch.optim.SGD(bert.parameters(), lr=0.0)
    engine = attach(bert, optimizer, NxMConfig("asp", pattern="1:4"), total_steps=1)
    bert(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    engine.finish()
    left = sum(int(parameter.count_nonzero()) for parameter in bert.parameters())
    assert nonzero_weights(Shape.from_options(model, "mrpc", ()), '"1:4"') == left


def test_flops_and_diversity_are_those_of_the_shape_and_the_schedule(model):
    shape = Shape.from_options(model, "mrpc", ())
    dense, asp = (flops(shape, NxMConfig(name).to_json_string(), 10, 16) for name in ("dense", "asp"))
    late = flops(shape, NxMConfig("asp", warmup=0.5).to_json_string(), 10, 16)
    # Two blocks of 4 * 32 * 32 + 2 * 32 * 64 weights, on 16 tokens, 2 FLOPs a weight: one of three products saves half.
    saved = 2 * 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64) * 0.5
    assert dense - asp == pytest.approx(saved) and dense - late == pytest.approx(saved / 2)
    assert masks_per_weight(shape, NxMConfig("asp", pattern="2:4").to_json_string()) == pytest.approx(math.log10(6) / 4)
    assert masks_per_weight(shape, NxMConfig("dense").to_json_string()) in (None, 0.0)
