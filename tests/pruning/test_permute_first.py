"""Channels that are reordered before pruning: the order of a method's scores, and the model that stays the same."""

import copy

import pytest
import torch

from nxm_hf import permute, prune, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.patterns import parse
from nxm_hf.pruning.block_cache import BlockCache
from nxm_hf.pruning.result import PruningResult
from tests.support.layer_inputs import literal_inputs
from tests.support.models import assert_equal_weights, make_batches, make_bert, make_model

TEXTS = make_batches("bert", count=4, rows=4)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5", "vit"])
def test_the_order_keeps_more_of_magnitude_times_input_and_wanda_prunes_what_it_left(name):
    model, dense, batches = make_model(name), make_model(name), make_batches(name)
    result = prune(model, "2:4", "wanda", batches, permute=True, inputs="dense")
    rows = literal_inputs(dense, batches, find_layers(dense))
    norms = {layer: x.square().sum(0).sqrt().float() for layer, x in rows.items()}
    by_hand = copy.deepcopy(dense)
    permutation = permute(by_hand, "2:4", inputs=batches[0], norms=norms)
    assert permutation.after > permutation.before > 0.5 and len(permutation.layers) >= 4
    assert result.permuted == pytest.approx((permutation.before, permutation.after), rel=1e-5)
    assert "magnitude times the norm of the input kept before" in str(permutation)
    with torch.no_grad():
        for batch in batches:
            first, second = by_hand(**batch)[0], dense(**batch)[0]
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    prune(by_hand, "2:4", "wanda", batches, inputs="dense")
    assert_equal_weights(model, by_hand)
    assert verify(model).ok and "by permutation" in str(result)
    kept = total = 0.0
    for moved in permutation.layers:  # worked out from the masks of the pruned model
        layer, old = (find_layers(m, include=moved.name)[0] for m in (model, dense))
        scores = old.matrix(old.weight.detach()).abs() * norms[moved.name]
        total += float(scores.sum())
        kept += moved.after * float(scores.sum())
        assert parse("2:4").violations(layer.matrix(layer.weight)) == 0
    assert result.permuted[1] == pytest.approx(kept / total, rel=1e-5)


def test_magnitude_goes_by_magnitude_and_needs_no_calibration():
    model, by_hand = make_bert(), make_bert()
    result = prune(model, permute=True)
    permutation = permute(by_hand)
    prune(by_hand)
    assert_equal_weights(model, by_hand)
    assert result.permuted == (permutation.before, permutation.after)
    assert prune(make_bert()).permuted is None


def test_a_permuted_job_continues_and_its_result_is_read_as_it_was_saved(tmp_path):
    model, other = make_bert(), make_bert()
    options = dict(permute=True, reconstruct={"steps": 3})
    result = prune(model, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), **options)
    again = prune(other, "2:4", "wanda", TEXTS, cache=BlockCache(tmp_path / "cache", {"job": 1}), **options)
    assert_equal_weights(model, other)
    assert again.permuted == result.permuted and again.blocks == result.blocks
    result.save(tmp_path)
    assert PruningResult.read(tmp_path) == result
    assert model.config.nxm_config["pruning"]["permuted"] is True


def test_a_sparse_model_is_not_permuted_and_stays_as_it_was():
    model, other = make_bert(), make_bert()
    for one in (model, other):
        prune(one)
    with pytest.raises(ValueError, match="sparse already"):
        prune(model, "1:4", permute=True)
    assert_equal_weights(model, other)
    assert model.config.nxm_config == other.config.nxm_config
