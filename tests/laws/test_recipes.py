"""Laws: what every recipe and every pattern of the catalogues must keep, from the first step to the reloaded model.

A recipe that is added by its file and its line in the catalogue is found here by itself.
"""

import functools
import importlib
import inspect

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nxm_hf import NxMConfig, SparsityRecord, methods, patterns, recipes, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.methods import schedules
from tests.support.grids import EACH_RECIPE, EACH_SPARSE_RECIPE, RECIPES, WINDOWS
from tests.support.models import assert_equal_weights, make_bert
from tests.support.training import make_12_step_trainer

# Patterns whose groups fit the tiny BERT, one of each form; others have their laws in test_patterns.
LADDERS = ("structure-decay", "gradual")  # recipes that make other patterns of the one they are given
FITTING = ["2:4", "1:4", "4:8", "2:4-transposable", "unstructured:0.5", "block:4:0.5", "block:4x4:0.5"]


def _train(folder, sparsity, **changes):
    trainer = make_12_step_trainer(folder, sparsity, save_strategy="no", **changes)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The training of a config, made once and kept; None is a plain Trainer's."""

    @functools.cache
    def run(recipe, *window):
        config = NxMConfig(recipe, **dict(window)) if recipe else None
        return _train(tmp_path_factory.mktemp("trained"), config, kind="NxMTrainer" if recipe else "Trainer")

    return run


def test_the_catalogues_are_not_empty():
    assert len(RECIPES) >= 5 and {patterns.parse(text).kind for text in FITTING} | {"dense"} == {
        kind.kind for kind in patterns.PATTERNS
    }


@EACH_RECIPE
def test_a_recipe_has_a_data_sheet(recipe):
    sheet = inspect.getdoc(recipes.RECIPES.find(recipe)[1].make)
    assert "Reference: " in sheet and "https://" in sheet and "Relations: " in sheet


@EACH_RECIPE
def test_a_method_reads_as_it_prints(recipe):
    names = {}
    for module in (methods, patterns, schedules, importlib.import_module(f"nxm_hf.recipes.{recipe.replace('-', '_')}")):
        names |= vars(module)
    method = recipes.make(recipe, patterns.parse("2:4"), {})
    assert eval(repr(method), names) == method


@WINDOWS
@EACH_SPARSE_RECIPE
def test_a_trained_model_is_sparse_and_reloads_without_us_bit_for_bit(recipe, window, trained, tmp_path):
    """Pitfalls 2 and 5: what is saved is sparse, and stays so."""
    trainer = trained(recipe, *window.items())
    trainer.save_model(tmp_path / "end")
    assert verify(trainer.model).ok and verify(tmp_path / "end").ok
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end")
    assert_equal_weights(again, trainer.model)
    record = SparsityRecord.from_pretrained(tmp_path / "end")
    assert record.config == NxMConfig(recipe, **window) and record.density == 0.5
    assert set(record.layers) == {layer.name for layer in find_layers(again)}


@EACH_SPARSE_RECIPE
@pytest.mark.parametrize("pattern", FITTING)
def test_every_recipe_trains_to_every_pattern(recipe, pattern, tmp_path):
    try:
        config = NxMConfig(recipe, pattern)
    except ValueError as error:
        assert recipe in LADDERS and pattern in str(error), "only a ladder of patterns has to refuse some"
        pytest.skip(str(error))
    trainer = _train(tmp_path, config, max_steps=4)
    held = patterns.parse(pattern)
    for layer in find_layers(trainer.model):
        weight = layer.matrix(layer.weight.detach())
        assert held.violations(weight) == 0
        assert weight.count_nonzero() <= held.kept(layer.shape)
        assert not torch.signbit(weight[weight == 0]).any()


@EACH_RECIPE
def test_with_a_dense_pattern_every_recipe_is_plain_fine_tuning(recipe, trained, tmp_path):
    plain = trained(None)
    ours = _train(tmp_path, NxMConfig(recipe, "dense"))
    assert_equal_weights(ours.model, plain.model)
    assert not hasattr(ours.model.config, "nxm_config")


@EACH_SPARSE_RECIPE
def test_a_short_training_moves_the_weights_and_logs_our_metrics_beside_the_loss(recipe, trained):
    trainer = trained(recipe)
    before = make_bert()
    for layer, old in zip(find_layers(trainer.model), find_layers(before), strict=True):
        kept = layer.weight != 0
        assert not torch.equal(layer.weight[kept], old.weight[kept]), f"{layer.name} was not trained"
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 4
    for record in records:
        assert {f"nxm/{name}" for name in ("density", "mask_similarity", "flip_rate", "residual", "phase")} <= set(
            record
        )
        assert record["nxm/density"] == 0.5 and 0 <= record["nxm/flip_rate"] <= 1 and 0 <= record["nxm/residual"] < 1
