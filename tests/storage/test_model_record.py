"""The record of being sparse: in a model's config while its weights are deployed, and beside saved weights."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from nxm_hf import NxMConfig, NxMTrainer, SparsityRecord, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.model_record import is_frozen, names_in, read_record, record_of, remove_record, set_record
from tests.support.models import make_arguments, make_bert
from tests.support.saving import train_two_steps


def test_a_saved_model_carries_its_config_a_card_and_no_state(tmp_path):
    trainer = train_two_steps(tmp_path / "run", sparsity=NxMConfig("ste", "1:4", {"refresh": 2}, settle=0.5))
    trainer.save_model(tmp_path / "end")
    names = {path.name for path in (tmp_path / "end").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "nxm_config.json",
        "nxm_manifest.json",
        "README.md",
        "training_args.bin",
    }
    record = SparsityRecord.from_pretrained(tmp_path / "end")
    assert record.config == NxMConfig("ste", "1:4", {"refresh": 2}, settle=0.5) and record.density == 0.25
    assert NxMConfig.from_pretrained(tmp_path / "end") == record.config
    assert json.loads((tmp_path / "end" / "config.json").read_text())["nxm_config"] == record.to_dict()
    card = ModelCard.load(tmp_path / "end" / "README.md")
    assert "nxm-hf" in card.data.tags
    assert "| `bert.encoder.layer.0.intermediate.dense` | ffn_in | 64x32 | 1:4 | 0.2500 |" in card.text
    assert "with `{'refresh': 2}`, with a frozen mask for the last 0.5 of the steps." in card.text


def test_a_later_plain_save_keeps_the_stamp(tmp_path):
    model = train_two_steps(tmp_path / "run").model
    model.save_pretrained(tmp_path / "one")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert not (tmp_path / "two" / "nxm_config.json").exists()
    record = SparsityRecord.from_pretrained(tmp_path / "two")
    assert record.layers == {layer.name: "2:4" for layer in find_layers(model)}
    assert verify(tmp_path / "two").ok


@pytest.mark.parametrize("recipe", ["admm", "ste"])
def test_a_model_in_training_does_not_carry_the_stamp(recipe, rows, tmp_path):
    class PlainSaves(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            model.save_pretrained(tmp_path / f"step-{state.global_step}")

    trainer = NxMTrainer(
        make_bert(),
        make_arguments(tmp_path / "run", max_steps=3, save_steps=1),
        train_dataset=rows,
        sparsity=recipe,
        callbacks=[PlainSaves()],
    )
    trainer.train()
    for step in (1, 2, 3):
        words = json.loads((tmp_path / f"step-{step}" / "config.json").read_text())
        assert "nxm_config" not in words
        with pytest.raises(FileNotFoundError, match="Say what it should hold"):
            verify(tmp_path / f"step-{step}")
        assert verify(tmp_path / "run" / f"checkpoint-{step}").ok
    assert "nxm_config" in trainer.model.config.to_dict()


@pytest.mark.parametrize("sparsity", ["dense", NxMConfig("admm", "dense")], ids=["recipe", "pattern"])
def test_a_sparse_model_that_is_trained_densely_loses_its_stamp(sparsity, tmp_path):
    model = train_two_steps(tmp_path / "run").model
    trainer = train_two_steps(tmp_path / "dense", model, sparsity)
    trainer.save_model(tmp_path / "end")
    assert "nxm_config" not in json.loads((tmp_path / "end" / "config.json").read_text())
    assert not (tmp_path / "end" / "nxm_config.json").exists()


# -- sparse models trained again ---------------------------------------------------------------------------------------


def test_training_on_with_a_plain_trainer_is_reported(rows, tmp_path):
    """Pitfall 5: nobody enforces the mask there, so the record is broken; `verify` says so."""
    train_two_steps(tmp_path / "run").save_model(tmp_path / "end")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end")
    plain = Trainer(model, make_arguments(tmp_path / "plain", max_steps=1, save_strategy="no"), train_dataset=rows)
    plain.train()
    plain.save_model(tmp_path / "after")
    for report in (verify(model), verify(tmp_path / "after")):
        assert len(report.problems) == 12 and all("breaks 2:4 in" in problem for problem in report.problems)
    with pytest.raises(ValueError, match="trained on without nxm_hf"):
        NxMTrainer(model, make_arguments(tmp_path / "again"), train_dataset=rows)


def test_a_sparse_model_trained_without_sparsity_keeps_its_mask_and_says_so(rows, tmp_path, caplog):
    train_two_steps(tmp_path / "run", sparsity=NxMConfig("ste", "1:4", exclude=["key"])).save_model(tmp_path / "end")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "end")
    masks = {layer.name: layer.weight != 0 for layer in find_layers(model)}
    before = {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer = NxMTrainer(model, make_arguments(tmp_path / "on", save_strategy="no"), train_dataset=rows)
    (record,) = caplog.records
    assert "sparse already (1:4); training keeps its mask" in record.message
    trainer.train()
    trainer.save_model(tmp_path / "again")
    for layer in find_layers(model):
        assert torch.equal(layer.weight != 0, masks[layer.name])
        assert not torch.equal(layer.weight, before[layer.name])
    assert verify(tmp_path / "again").density == 0.25
    config = NxMConfig.from_pretrained(tmp_path / "again")
    assert (config.recipe, config.pattern, config.exclude) == ("asp", "1:4", ["key"])


def test_a_sparse_model_given_sparsity_restarts_and_says_so(tmp_path, caplog):
    model = train_two_steps(tmp_path / "run").model
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer = train_two_steps(tmp_path / "on", model, NxMConfig("ste", "4:8"), max_steps=12)
    assert "sparse already; training restarts from its weights with 'ste'" in caplog.records[0].message
    assert verify(trainer.model).ok and NxMConfig.from_dict(model.config.nxm_config).pattern == "4:8"
    assert not verify(trainer.model, "2:4").ok  # the mask moved


def test_a_dense_model_without_sparsity_is_an_error_that_says_what_to_type(rows, arguments):
    with pytest.raises(ValueError, match=r'needs sparsity=, as in sparsity=NxMConfig\(pattern="2:4", recipe="admm"\)'):
        NxMTrainer(make_bert(), arguments(), train_dataset=rows)


# -- by hand -----------------------------------------------------------------------------------------------------------


def recorded(model, layers=None, density=0.5):
    """Record that a model is sparse, without pruning it. Return the record."""
    layers = layers or {layer.name: "2:4" for layer in find_layers(model)}
    record = SparsityRecord(NxMConfig("ste"), layers, density)
    set_record(model, record)
    return record


def test_a_record_is_read_as_it_was_set_and_a_model_without_a_config_has_none():
    for wrap in (lambda model: model, torch.nn.DataParallel):
        model = make_bert()
        assert read_record(wrap(model)) is None
        record = recorded(wrap(model))
        assert read_record(wrap(model)) == record == SparsityRecord.from_dict(model.config.nxm_config)
        remove_record(wrap(model))
        assert read_record(model) is None and not hasattr(model.config, "nxm_config")
        remove_record(model)
    plain = torch.nn.Linear(2, 2)
    set_record(plain, record), remove_record(plain)
    assert read_record(plain) is None and not is_frozen(plain) and not hasattr(plain, "config")


def test_a_model_is_frozen_if_it_is_recorded_and_none_of_its_sparse_layers_trains():
    model = make_bert()
    record, names = recorded(model), [layer.name for layer in find_layers(model)]
    assert not is_frozen(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert is_frozen(model)
    for name in (names[0], names[-1]):
        model.get_submodule(name).weight.requires_grad_(True)
        remove_record(model, only_if_trained=True)
        assert not is_frozen(model) and read_record(model) is None
        set_record(model, record)
        model.get_submodule(name).weight.requires_grad_(False)
    model.classifier.weight.requires_grad_(True)  # no sparse layer
    remove_record(model, only_if_trained=True)
    assert is_frozen(model) and read_record(model) == record
    remove_record(model)
    assert not is_frozen(model) and read_record(model) is None


@pytest.mark.parametrize("trained", [0, -1])
def test_a_recorded_layer_is_known_in_a_model_with_a_head_more_or_less(trained):
    model = make_bert()
    layers = {layer.name: "2:4" for layer in find_layers(model)}
    without = {name.removeprefix("bert."): pattern for name, pattern in layers.items()}
    for here, given in ((model, without), (model.bert, layers), (model, layers), (model.bert, without)):
        assert names_in(here, given) == (layers if here is model else without)
        assert names_in(here, {"no.such": "1:4"}) == {"no.such": "1:4"}
        recorded(here, given)
        assert read_record(here).layers == names_in(here, given)
        model.requires_grad_(False)
        assert is_frozen(here)
        model.get_submodule([*layers][trained]).weight.requires_grad_(True)
        assert not is_frozen(here)


def test_the_record_of_a_plan_is_that_of_its_config_unless_the_model_is_frozen():
    model, config = make_bert(), NxMConfig("sr-ste", "1:4")
    plan = Plan.of(model, config)
    before = recorded(model)
    assert record_of(plan, config, 0.25) == SparsityRecord(config, plan.layers, 0.25)
    model.requires_grad_(False)
    assert record_of(plan, config, 0.25) == replace(before, density=0.25)
    remove_record(model)
    assert record_of(plan, config, 0.25) == SparsityRecord(config, plan.layers, 0.25)
