"""Finished blocks on disk: of another job, and damaged."""

from nxm_hf import prune
from nxm_hf.pruning.block_cache import BlockCache
from tests.support.models import assert_equal_weights, make_batches, make_bert


def test_finished_blocks_of_the_same_job_are_read_and_not_pruned_again(tmp_path, monkeypatch):
    model, other = make_bert(), make_bert()
    result = prune(model, "2:4", "sparsegpt", make_batches("bert"), cache=BlockCache(tmp_path / "cache", {"job": 1}))
    monkeypatch.setattr("nxm_hf.pruning.blockwise._prune_layer", None)
    again = prune(other, "2:4", "sparsegpt", make_batches("bert"), cache=BlockCache(tmp_path / "cache", {"job": 1}))
    assert_equal_weights(model, other)
    assert again.layers == result.layers


def test_blocks_of_another_job_are_removed_and_the_warning_names_the_difference(tmp_path, caplog):
    prune(make_bert(), "1:4", cache=BlockCache(tmp_path / "cache", {"pattern": "1:4", "method": "magnitude"}))
    cache = BlockCache(tmp_path / "cache", {"pattern": "2:4", "method": "magnitude"})
    assert "holds an unfinished job with another pattern; starting anew" in caplog.text
    assert cache.load("bert.encoder.layer.0") is None and not cache.folder.exists()


def test_a_job_that_cannot_be_read_is_removed(tmp_path, caplog):
    (tmp_path / "cache").mkdir()
    BlockCache(tmp_path / "cache", {})
    assert "holds an unfinished job that cannot be read" in caplog.text and not (tmp_path / "cache").exists()


def test_a_finished_block_that_is_torn_is_pruned_again(tmp_path, caplog):
    model, other = make_bert(), make_bert()
    cache = BlockCache(tmp_path / "cache", {"job": 1})
    prune(model, cache=cache)
    torn = tmp_path / "cache" / "bert.encoder.layer.1" / "nxm_state.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    prune(other, cache=BlockCache(tmp_path / "cache", {"job": 1}))
    assert_equal_weights(model, other)
    assert "Pruning bert.encoder.layer.1 again" in caplog.text
