"""What cannot be trained is refused when the trainer is made."""

import logging
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, prune, verify
from nxm_hf.config.versions import forgets_best
from nxm_hf.engine.requirements import check_shards
from nxm_hf.layers.plan import Plan
from nxm_hf.trainer.session import SparseTrainingSession
from nxm_hf.trainer.unsupported import refuse_unsupported
from tests.support.custom_methods import Shrinking
from tests.support.models import make_bert
from tests.support.training import (
    make_12_step_trainer,
)


def _frozen():
    model = make_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "sparsity", "useful"),
    [
        (lambda: make_bert().to(torch.bfloat16), "ste", r"dtype=torch\.float32 and train with bf16=True"),
        (lambda: make_bert().half(), "asp", r"dtype=torch\.float32 and train with bf16=True"),
        (_frozen, "ste", r"6 layers.*are frozen.*layer\.0\.attention\.self\.query"),
        (make_bert, NxMConfig("ste", "2:5"), r'does not fit 12 layers.*on_indivisible="skip"'),
        (make_bert, NxMConfig("ste", "2:5", on_indivisible="skip"), "Nothing is left to prune"),
        (make_bert, NxMConfig("ste", include=["quary"]), "include='quary' matches no layer"),
        (make_bert, NxMConfig("ste", exclude=["attention", "ffn"]), "leave none of its 12 layers"),
        (make_bert, NxMConfig("ste", {"cross_query": "2:4"}), 'add "default"'),
        (lambda: torch.nn.Linear(8, 8), "ste", "Nothing to prune in this Linear"),
    ],
)
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_a_model_that_cannot_be_trained_is_refused_when_the_trainer_is_made(kind, model, sparsity, useful, arguments):
    with pytest.raises(ValueError, match=f"(?s){useful}"):
        if kind == "trainer":
            NxMTrainer(model(), arguments(), sparsity=sparsity)
        else:
            Trainer(model(), arguments(), callbacks=[NxMCallback(sparsity)])


@pytest.mark.parametrize(
    ("changes", "useful"),
    [
        ({"optim": "schedule_free_adamw"}, "schedule_free_adamw.*use adamw_torch"),
        ({"optim": "schedule_free_sgd"}, "schedule_free_sgd.*use adamw_torch"),
        ({"optim": "lomo"}, "lomo.*use adamw_torch"),
        ({"optim": "adalomo"}, "adalomo.*use adamw_torch"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["q"]}, "layerwise.*use adamw_torch"),
        ({"deepspeed": "zero.json"}, "DeepSpeed.*FSDP2.*DDP"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_arguments_that_cannot_be_followed_are_refused_in_one_sentence(kind, changes, useful, arguments, monkeypatch):
    given = arguments(**{name: value for name, value in changes.items() if name.startswith("optim")})
    # As `accelerate launch` and a machine with several processes would have it, where the Trainer itself agrees.
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    for name, value in changes.items():
        if name.isupper():
            monkeypatch.setenv(name, value)
        elif not name.startswith("optim"):
            setattr(given, name, value)
    with pytest.raises(ValueError, match=useful) as error:
        if kind == "trainer":
            NxMTrainer(make_bert(), given, sparsity="ste")
        else:
            Trainer(make_bert(), given, callbacks=[NxMCallback("ste")])
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


@pytest.mark.parametrize(
    ("change", "useful"),
    [
        (lambda args, model: setattr(model, "hf_device_map", {"bert": 0, "classifier": "cpu"}), "device_map.*DDP"),
        (lambda args, model: setattr(model, "_device_mesh", object()), "tp_plan.*FSDP2"),
        (
            lambda args, model: setattr(model, "hf_quantizer", object()),
            "fp32, make it sparse, and quantize it afterwards",
        ),
    ],
)
def test_what_only_other_machines_have_is_refused_in_one_sentence(change, useful, arguments):
    args, model = arguments(), make_bert()
    refuse_unsupported(args, model)
    change(args, model)
    with pytest.raises(ValueError, match=useful) as error:
        refuse_unsupported(args, model)
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


def shard(monkeypatch, **settings):
    """Have accelerate shard trainings from here on, as it does on several GPUs."""
    plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2, "cpu_ram_efficient_loading": False, **settings})
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {**PartialState._shared_state, "fsdp_plugin": plugin})


@pytest.mark.parametrize(
    ("settings", "sparsity", "useful"),
    [
        ({"fsdp_version": 1}, "ste", r"FSDP1.*\"version\": 2.*fsdp_version: 2.*accelerate to-fsdp2"),
        ({"cpu_ram_efficient_loading": True}, "ste", "fsdp_cpu_ram_efficient_loading: false"),
        ({}, NxMConfig("admm", "block:4:0.5", settings={"rho": "quantile"}), 'quantile.*"rho": "auto".*DDP'),
        ({}, NxMConfig(Shrinking()), 'Shrinking.* may look at whole weights.*DDP.*"sr-ste"'),
    ],
)
def test_what_shards_cannot_do_is_refused_in_one_sentence(settings, sparsity, useful, arguments, monkeypatch):
    args = arguments()
    shard(monkeypatch, **settings)
    with pytest.raises(ValueError, match=useful) as error:
        SparseTrainingSession(NxMConfig.from_any(sparsity)).check(args, make_bert())
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


def test_scores_from_training_data_are_refused_for_a_sharded_container():
    config = NxMConfig("admm")
    plan = Plan.of(make_bert(), config)
    check_shards(plan, config)
    with pytest.raises(ValueError, match=r'a Sequential as a whole; write .*\{"scores": "fisher"\}.*DDP'):
        check_shards(replace(plan, whole=nn.Sequential(plan.model)), config)


def test_sharded_trainings_pass_the_check_and_the_callback_asks_for_whole_models(arguments, monkeypatch):
    args, model = arguments(), make_bert()
    shard(monkeypatch)
    scored = NxMConfig("asp", settings={"scores": "wanda"}, warmup=0.5)
    for recipe in ("asp", "set", "admm", scored, NxMConfig("ste", "block:4:0.5")):
        SparseTrainingSession(NxMConfig.from_any(recipe)).check(args, model)
    plugin = AcceleratorState().fsdp_plugin
    assert "SHARDED" in str(plugin.state_dict_type)  # accelerate's default
    NxMCallback("ste").on_init_end(args, TrainerState(), TrainerControl(), model=model)
    assert "FULL" in str(plugin.state_dict_type) and plugin.optim_state_dict_config.rank0_only


def test_frozen_sparse_layers_may_be_sharded(arguments, monkeypatch):
    args, model = arguments(), make_bert()
    prune(model, "2:4")
    model.bert.requires_grad_(False)
    shard(monkeypatch)
    SparseTrainingSession(NxMConfig("asp")).check(args, model)


def test_fsdp_that_accelerate_does_not_do_is_a_warning(arguments, monkeypatch, caplog):
    """On CPUs accelerate trains with DDP, or in one process, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        NxMTrainer(make_bert(), arguments(), sparsity="ste")
    assert "FSDP was asked for, and accelerate trains without it here" in caplog.text
    assert "several GPUs only" in caplog.text


def test_our_callback_inside_our_trainer_is_refused(arguments):
    with pytest.raises(ValueError, match="use one of them"):
        NxMTrainer(make_bert(), arguments(), sparsity="ste", callbacks=[NxMCallback("ste")])


def test_an_optimizer_that_does_not_hold_the_layers_is_refused(rows, arguments):
    model = make_bert()
    optimizer = torch.optim.AdamW(model.classifier.parameters())
    trainer = NxMTrainer(model, arguments(), train_dataset=rows, sparsity="ste", optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"12 layers.*are not held by the optimizer"):
        trainer.train()


def test_what_the_pattern_does_not_fit_may_be_skipped_and_is_named(tmp_path, caplog):
    model = make_bert(intermediate_size=66)  # 66 = 4 * 16 + 2: what comes out of it does not divide
    with pytest.raises(ValueError, match=r"does not fit 2 layers \(bert\.encoder\.layer\.0\.output\.dense, "):
        make_12_step_trainer(tmp_path, "ste", model=model)
    trainer = make_12_step_trainer(tmp_path, NxMConfig("ste", on_indivisible="skip"), model=model, save_strategy="no")
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer.train()
    (record,) = caplog.records
    assert "Left dense" in record.message and "bert.encoder.layer.1.output.dense" in record.message
    assert len(verify(model).layers) == 10 and verify(model).ok
    assert model.bert.encoder.layer[0].output.dense.weight.count_nonzero() > 32 * 66 * 0.9


@pytest.mark.parametrize("kind", ["NxMTrainer", "NxMCallback"])
def test_the_strategy_best_is_refused_where_the_best_model_would_not_be_loaded(kind, tmp_path):
    words = dict(eval_strategy="steps", eval_steps=2, save_strategy="best", load_best_model_at_end=True, max_steps=2)
    words |= dict(metric_for_best_model="loss")

    def train(sparsity, **changes):
        make_12_step_trainer(tmp_path, sparsity, kind=kind, **{**words, **changes}).train()

    train("ste", load_best_model_at_end=False)
    if not forgets_best():
        train("ste")
        return
    with pytest.raises(ValueError, match=r'does not load the best model with save_strategy="best"; write'):
        train("ste")
