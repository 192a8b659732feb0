"""Training FLOPs, against accounts that were worked out by hand."""

import pytest

from nxm_hf import NxMConfig, analysis
from tests.support.models import make_bert

PHASES = {"warmup": 0.1, "settle": 0.1}
ACCOUNTS = [  # recipe, pattern, phases, forward alone, forward and dX
    ("asp", "2:4", {}, 0.8333, 0.6667),
    ("structure-decay", "1:16", PHASES, 0.8021, 0.6042),
    ("mask-decay", "1:16", PHASES, 0.9688, 0.9375),
    ("asp", "1:16", {"warmup": 0.1}, 0.7188, 0.4375),
    ("ste", "2:4", {}, 0.8333, 0.6667),
    ("admm", "2:4", {}, 0.9167, 0.8333),  # left to itself it settles for half of the steps
    ("admm", "2:4", {"settle": 0.3}, 0.95, 0.9),
    ("dense", "2:4", {}, 1.0, 1.0),
]


@pytest.mark.parametrize("recipe, pattern, phases, forward, both", ACCOUNTS)
def test_accounts_of_the_specification(recipe, pattern, phases, forward, both):
    model, config = make_bert(), NxMConfig(recipe, pattern, **phases)
    found = [analysis.training_flops(model, config, 1000, sparse_dx=dx).ratio for dx in (None, False, True)]
    assert found == pytest.approx([forward, forward, both], abs=5e-5)


def test_transposable_patterns_and_two_dimensional_blocks_save_in_both_directions():
    for pattern, dx in {"2:4-transposable": 0.5, "block:4x4:0.5": 0.5, "block:4:0.5": 1, "unstructured:0.5": 1}.items():
        (first, *_) = analysis.training_flops(make_bert(), NxMConfig("asp", pattern), 10).layers
        assert (first.forward, first.dx, first.dw) == (0.5, dx, 1), pattern


def test_the_gradient_of_weights_counts_as_sparse_only_where_pruned_ones_get_none():
    def dw(recipe, **words):
        account = analysis.training_flops(make_bert(), NxMConfig(recipe, **words), 100, sparse_dw=True)
        return account.layers[0].dw

    assert dw("asp") == dw("set", settings={"every": 10}) == 0.5 and dw("ste") == 1
    assert dw("fix") == 0.745 and dw("admm", settle=0.2) == 0.9
    assert dw("rigl", settings={"every": 10}) == pytest.approx((91 * 0.5 + 9) / 100, abs=0.006)


def test_layers_of_several_patterns_have_accounts_of_their_own():
    config = NxMConfig("asp", {"ffn": "1:4", "query": "2:4"})
    layers = {layer.role: layer for layer in analysis.training_flops(make_bert(), config, 10).layers}
    assert {role: layer.forward for role, layer in layers.items()} == {"query": 0.5, "ffn_in": 0.25, "ffn_out": 0.25}
    assert (layers["query"].pattern, layers["ffn_in"].pattern) == ("2:4", "1:4")


def test_an_account_says_its_conventions():
    texts = {
        str(analysis.training_flops(make_bert(), "asp", 5, sparse_dx=dx, sparse_dw=dw))
        for dx in (None, True, False)
        for dw in (True, False)
    }
    assert len(texts) == 6
    for text in texts:
        assert "three equal products" in text and "element-wise work is not counted" in text


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_training_has_at_least_one_step_and_a_text_one_token(steps):
    with pytest.raises(ValueError, match="total_steps must be a whole number"):
        analysis.training_flops(make_bert(), "asp", steps)
    with pytest.raises(ValueError, match="tokens must be a whole number"):
        analysis.training_flops(make_bert(), "asp", 5, tokens=steps)
