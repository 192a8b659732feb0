"""The end of a training: the finished model, the best model, and early stopping."""

import logging

import numpy
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    TrainerCallback,
)

from nxm_hf import Engine, NxMConfig, NxMTrainer, verify
from nxm_hf.layers.find import find_layers
from tests.support.grids import FEW, WINDOW
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows
from tests.support.training import is_sparse, make_12_step_trainer, pruned_weights


def test_other_callbacks_see_the_finished_model_when_training_ends(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            seen.append((is_sparse(model), hasattr(model.config, "nxm_config"), pruned_weights(model)))

    trainer = make_12_step_trainer(tmp_path, "admm", callbacks=[Look()], save_strategy="no")
    trainer.add_callback(Look())
    trainer.train()
    assert len(seen) == 2
    for sparse, stamped, weights in seen:
        assert sparse and stamped
        assert all(torch.equal(weights[name], weight) for name, weight in pruned_weights(trainer.model).items())


def test_once_it_is_finished_the_model_is_an_ordinary_one(tmp_path):
    """Nothing of ours is left on the optimizer, so a step of it revives pruned weights as of any model."""
    trainer = make_12_step_trainer(tmp_path, "asp", save_strategy="no")
    trainer.train()
    layer = find_layers(trainer.model)[0]
    layer.weight.grad = torch.ones_like(layer.weight)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    trainer.optimizer.step()
    assert not is_sparse(trainer.model)


def _choosing(folder, rows, config, best, **changes):
    """A training whose `best`-th evaluation is the best, and what each evaluation has seen."""
    seen = []

    def compute_metrics(prediction):
        seen.append(float(numpy.abs(prediction.predictions).sum()))
        return {"choice": float(len(seen) == best), "seen": seen[-1]}

    words = dict(eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True, greater_is_better=True)
    words |= dict(metric_for_best_model="choice", compute_metrics=compute_metrics)
    return make_12_step_trainer(folder, config, **{**words, **changes}), seen


# One recipe for each kind of state in every phase, and two whose masks keep now more and now less.
PHASES = {"warmup": 1, "recipe": 3, "settle": 6}  # phase -> the number of an evaluation in it


@pytest.mark.parametrize(
    ("recipe", "best"),
    [pytest.param(name, PHASES[phase], id=f"{name}-{phase}") for name in FEW for phase in PHASES]
    + [pytest.param(name, PHASES["recipe"], id=f"{name}-recipe") for name in ("acdc", "gradual")],
)
def test_the_best_model_is_the_one_that_was_measured_whatever_its_phase(recipe, best, rows, tmp_path, caplog):
    """Pitfall 30: what is loaded is finished already, and must not be pruned a second time by later masks."""
    trainer, seen = _choosing(tmp_path, rows, NxMConfig(recipe, **WINDOW), best)
    trainer.train()
    assert trainer.state.best_global_step == 2 * best
    trainer.evaluate()
    assert seen[-1] == seen[best - 1] and len(set(seen[:6])) == 6
    checkpoint = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{2 * best}")
    assert_equal_weights(trainer.model, checkpoint)
    assert verify(trainer.model).ok and hasattr(trainer.model.config, "nxm_config")
    assert not caplog.records


def test_the_final_evaluation_is_exactly_the_best_metric(rows, tmp_path):
    words = dict(metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=0.05)
    trainer, _ = _choosing(tmp_path, rows, NxMConfig("admm", **WINDOW), 0, **words)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok


@pytest.mark.skipif("nomic_bert" not in CONFIG_MAPPING, reason="this version of transformers has no nomic_bert")
@pytest.mark.parametrize("recipe", ["ste", "admm", "dense"])
def test_a_best_model_that_a_plain_trainer_does_not_restore_is_loaded(recipe, rows, tmp_path):
    """Families that save under other names than they compute with: Trainer loads nothing of them, with a warning."""
    words = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("nomic_bert", **words))
    trainer, seen = _choosing(tmp_path, rows, recipe, 1, model=model)
    trainer.train()
    trainer.evaluate()
    assert seen[-1] == seen[0] != seen[1]


def test_one_checkpoint_is_kept_where_one_is_asked_for_and_it_is_the_best(rows, tmp_path):
    trainer, seen = _choosing(tmp_path, rows, NxMConfig("admm", **WINDOW), 3, save_total_limit=1)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    trainer.evaluate()
    assert seen[-1] == seen[2] and verify(tmp_path / "checkpoint-6").ok


def test_checkpoints_of_models_only_hold_no_state_and_the_best_of_them_loads(rows, tmp_path):
    trainer, seen = _choosing(tmp_path, rows, NxMConfig("sr-ste", **WINDOW), 3, save_only_model=True)
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "nxm_config.json", "README.md"} <= names
    assert not names & {"optimizer.pt", "nxm_state.safetensors"}
    trainer.evaluate()
    assert seen[-1] == seen[2] and verify(tmp_path / "checkpoint-6").ok


@pytest.mark.filterwarnings("ignore:Using EarlyStoppingCallback without")
@pytest.mark.parametrize("load_best", [True, False], ids=["load best", "keep last"])
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_early_stopping_finishes_and_warns_once_with_phase_and_residual(recipe, load_best, rows, tmp_path, caplog):
    words = dict(callbacks=[EarlyStoppingCallback(early_stopping_patience=2)], load_best_model_at_end=load_best)
    trainer, seen = _choosing(tmp_path, rows, NxMConfig(recipe, **WINDOW), 1, **words)
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer.train()
    assert trainer.state.global_step == 6 and is_sparse(trainer.model) and verify(trainer.model).ok
    (record,) = [record for record in caplog.records if record.name == "nxm_hf"]
    assert "Training ends at step 6 of 12, in the phase 'recipe'" in record.message
    residual = float(record.message.split(" of the norm")[0].split()[-1])
    assert 0.1 < residual < 0.9
    trainer.evaluate()
    assert seen[-1] == seen[0 if load_best else 2]


def test_a_whole_training_warns_of_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        make_12_step_trainer(tmp_path, NxMConfig("admm", **WINDOW)).train()
    assert not caplog.records


@pytest.mark.parametrize("recipe", ["asp", "ste", "admm"])
def test_a_host_that_writes_its_card_before_it_saves_gets_one_of_the_deployed_weights(recipe, tmp_path):
    """The Trainers of TRL write the card at the beginning of each checkpoint."""

    class CardFirst(NxMTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            before = {name: weight.clone() for name, weight in self.model.state_dict().items()}
            self.create_model_card()
            assert all(torch.equal(before[name], weight) for name, weight in self.model.state_dict().items())
            super()._save_checkpoint(*args, **kwargs)

    trainer = CardFirst(make_bert(), make_arguments(tmp_path), train_dataset=make_rows(), sparsity=recipe)
    trainer.train()
    assert verify(tmp_path / "checkpoint-6").ok
    assert "## Sparsity" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("sets", [1, 3])
def test_an_evaluation_on_several_datasets_deploys_once(sets, tmp_path, monkeypatch):
    deployed = []
    deploy = Engine.deploy
    monkeypatch.setattr(Engine, "deploy", lambda engine, *args, **kw: deployed.append(1) or deploy(engine, *args, **kw))
    data = {str(number): make_rows(8) for number in range(sets)}
    evaluations = dict(eval_strategy="steps", eval_steps=2, save_strategy="no", max_steps=2)
    make_12_step_trainer(tmp_path, "ste", eval_dataset=data, **evaluations).train()
    assert len(deployed) == 2, "the evaluation, and the end of the training"
