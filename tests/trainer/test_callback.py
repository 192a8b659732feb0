"""NxMCallback: any Trainer, of whoever's making, trains, evaluates and saves as NxMTrainer does."""

import dataclasses
import logging

import numpy
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
)

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, recipes, verify
from nxm_hf.layers.find import find_layers
from tests.support.models import FEW, assert_equal_weights, make_arguments, make_bert

SPARSE = [name for name in recipes.names() if name != "dense"]
PHASED = dict(warmup=0.25, settle=0.25)
CLOCK = ("runtime", "per_second")
OFTEN = dict(eval_strategy="steps", eval_steps=2, save_steps=3, logging_steps=2)


def _trainer(folder, rows, sparsity, before=(), kind=Trainer, compute_metrics=None, model=None, **changes):
    return kind(
        model or make_bert(),
        make_arguments(folder, **changes),
        train_dataset=rows,
        eval_dataset=rows[:16],
        compute_metrics=compute_metrics,
        callbacks=[*before, NxMCallback(sparsity)],
    )


def _weights(model):
    return {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}


def _is_sparse(model):
    """Whether every layer keeps at most 2 of 4 consecutive inputs; counted by hand."""
    groups = [layer.weight.detach().unflatten(1, (-1, 4)) for layer in find_layers(model)]
    return all(bool(((group != 0).sum(-1) <= 2).all()) for group in groups)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        *(pytest.param(name, OFTEN, id=f"{name}, steps") for name in recipes.names()),
        *(pytest.param(name, dict(eval_strategy="epoch", save_strategy="epoch"), id=f"{name}, epochs") for name in FEW),
    ],
)
def test_a_trainer_with_our_callback_is_our_trainer_bit_for_bit(recipe, changes, rows, tmp_path):
    """It deploys for each evaluation and save, and is back before the next step; so nothing of the training differs."""
    config = NxMConfig(recipe, **PHASED)
    theirs = _trainer(tmp_path / "callback", rows, config, **changes)
    theirs.train()
    arguments = make_arguments(tmp_path / "trainer", **changes)
    ours = NxMTrainer(make_bert(), arguments, train_dataset=rows, eval_dataset=rows[:16], sparsity=config)
    ours.train()
    assert_equal_weights(theirs.model, ours.model)
    logs = [
        [{k: v for k, v in record.items() if not k.endswith(CLOCK)} for record in trainer.state.log_history]
        for trainer in (theirs, ours)
    ]
    assert logs[0] == logs[1] and any("eval_loss" in record for record in logs[0])
    checkpoints = sorted(path.name for path in (tmp_path / "trainer").glob("checkpoint-*"))
    assert len(checkpoints) >= 2
    for name in checkpoints:
        one, other = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / kind / name)
            for kind in ("callback", "trainer")
        )
        assert_equal_weights(one, other)
        files = [{path.name for path in (tmp_path / kind / name).iterdir()} for kind in ("callback", "trainer")]
        assert files[0] == files[1]
        if recipe != "dense":
            assert verify(tmp_path / "callback" / name).ok and {"nxm_config.json", "nxm_state.safetensors"} <= files[0]


@pytest.mark.parametrize("recipe", ["sr-ste", "admm"])
def test_evaluations_see_the_weights_to_ship_and_steps_do_not(recipe, rows, tmp_path):
    evaluated, stepped = [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            stepped.append((_is_sparse(model), hasattr(model.config, "nxm_config")))

    def compute_metrics(prediction):
        evaluated.append((_is_sparse(trainer.model), hasattr(trainer.model.config, "nxm_config")))
        return {"seen": 0.0}

    config = NxMConfig(recipe, settings={"rho": 0.01} if recipe == "admm" else {})  # which does not settle
    trainer = _trainer(tmp_path, rows, config, compute_metrics=compute_metrics, **OFTEN)
    trainer.add_callback(Watch())  # after ours, so that it sees what the step will compute with
    trainer.train()
    trainer.evaluate()
    assert evaluated == [(True, True)] * 7
    assert stepped == [(recipe == "sr-ste", False)] * 12


def test_the_evaluation_before_the_first_step_sees_the_weights_to_ship_too(rows, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(_is_sparse(trainer.model))
        return {"seen": 0.0}

    words = dict(OFTEN, eval_on_start=True)
    trainer = _trainer(tmp_path, rows, NxMConfig("admm", **PHASED), compute_metrics=compute_metrics, **words)
    trainer.train()
    assert seen == [True] * 7


@pytest.mark.parametrize("strategy", ["best", "steps"])
@pytest.mark.parametrize("best", [1, 3, 6], ids=["warmup", "recipe", "settle"])
@pytest.mark.parametrize("recipe", ["sr-ste", "admm"])
def test_the_best_model_is_the_one_that_was_measured_whatever_its_phase(recipe, best, strategy, rows, tmp_path):
    """Pitfall 30. With save_strategy="best" nobody knows before an evaluation whether it will be saved."""
    seen = []

    def compute_metrics(prediction):
        seen.append(float(numpy.abs(prediction.predictions).sum()))
        return {"choice": float(len(seen) == best), "seen": seen[-1]}

    words = dict(
        OFTEN, save_strategy=strategy, save_steps=2, load_best_model_at_end=True, metric_for_best_model="choice"
    )
    config = NxMConfig(recipe, **PHASED)
    trainer = _trainer(tmp_path, rows, config, compute_metrics=compute_metrics, greater_is_better=True, **words)
    trainer.train()
    trainer.evaluate()
    assert seen[-1] == seen[best - 1] and len(set(seen[:6])) == 6
    assert_equal_weights(
        trainer.model, AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{2 * best}")
    )
    assert verify(trainer.model).ok and verify(tmp_path / f"checkpoint-{2 * best}").ok
    steps = {2, 2 * best} if strategy == "best" else set(range(2, 14, 2))  # the first is the best so far
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in steps}


def test_one_checkpoint_is_kept_where_one_is_asked_for(rows, tmp_path):
    trainer = _trainer(tmp_path, rows, "admm", save_total_limit=1, save_steps=3)
    trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-12"] and verify(tmp_path / "checkpoint-12").ok


def test_checkpoints_of_models_only_hold_no_state(rows, tmp_path):
    _trainer(tmp_path, rows, "admm", save_only_model=True).train()
    names = {path.name for path in (tmp_path / "checkpoint-6").iterdir()}
    assert {"model.safetensors", "nxm_config.json"} <= names and "nxm_state.safetensors" not in names
    assert verify(tmp_path / "checkpoint-6").ok


@pytest.mark.parametrize("load_best", [True, False], ids=["load best", "keep last"])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_early_stopping_finishes_and_warns_once(strategy, load_best, rows, tmp_path, caplog):
    words = dict(eval_strategy=strategy, save_strategy=strategy, eval_steps=2, save_steps=2, max_steps=40)
    words |= dict(metric_for_best_model="never", greater_is_better=True, load_best_model_at_end=load_best)
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = _trainer(tmp_path, rows, "admm", [stop], compute_metrics=lambda prediction: {"never": 0.0}, **words)
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer.train()
    step = {"steps": 4, "epoch": 16}[strategy]
    assert trainer.state.global_step == step and verify(trainer.model).ok
    (record,) = [record for record in caplog.records if record.name == "nxm_hf"]
    assert f"Training ends at step {step} of 40, in the phase 'recipe'" in record.message
    assert 0.1 < float(record.message.split(" of the norm")[0].split()[-1]) < 0.9


def test_metrics_reach_the_log_history_beside_the_loss_and_no_evaluation(rows, tmp_path):
    evaluations = []

    class Look(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            evaluations.append(metrics)

    trainer = _trainer(tmp_path, rows, NxMConfig("admm", **PHASED), [Look()], **OFTEN)
    trainer.train()
    names = {"nxm/density", "nxm/mask_similarity", "nxm/flip_rate", "nxm/residual", "nxm/phase"}
    for record in trainer.state.log_history:
        assert {name for name in record if name.startswith("nxm")} == (names if "loss" in record else set())
    assert len(evaluations) == 6 and not any("nxm" in name for metrics in evaluations for name in metrics)


def test_callbacks_before_ours_see_the_finished_model_when_training_ends(rows, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            seen.append((_weights(model), hasattr(model.config, "nxm_config")))

    trainer = _trainer(tmp_path, rows, "admm", [Look()], save_strategy="no")
    trainer.train()
    ((weights, stamped),) = seen
    assert stamped and all(torch.equal(weights[name], weight) for name, weight in _weights(trainer.model).items())


def test_a_save_that_is_asked_for_after_ours_has_looked_is_the_documented_error(rows, tmp_path):
    class Late(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 2

    trainer = _trainer(tmp_path, rows, "admm")
    trainer.add_callback(Late())
    with pytest.raises(RuntimeError, match=r"checkpoint-2 was saved with dense weights.*Put NxMCallback last"):
        trainer.train()


def test_a_save_that_is_asked_for_before_ours_has_looked_is_deployed(rows, tmp_path):
    class Early(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 2

    _trainer(tmp_path, rows, "admm", [Early()]).train()
    assert verify(tmp_path / "checkpoint-2").ok and (tmp_path / "checkpoint-2" / "nxm_state.safetensors").is_file()


def test_after_an_interrupt_the_weights_to_ship_are_saved_within_deployed(rows, tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    trainer = _trainer(tmp_path, rows, "admm", [Break()], save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    callback = trainer.callback_handler.callbacks[-2]
    assert isinstance(callback, NxMCallback) and not _is_sparse(trainer.model)
    with callback.deployed():
        trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok and not _is_sparse(trainer.model)


def test_a_hyperparameter_search_is_refused(rows, tmp_path):
    pytest.importorskip("optuna")
    callbacks = [NxMCallback("ste")]
    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=3, max_steps=3)
    trainer = Trainer(
        args=arguments, model_init=lambda: make_bert(), train_dataset=rows, eval_dataset=rows[:8], callbacks=callbacks
    )
    with pytest.raises(ValueError, match=r"cannot take part in a hyperparameter search; use NxMTrainer, which can\."):
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
            n_trials=1,
            backend="optuna",
        )


def test_what_cannot_be_trained_is_refused_even_when_the_callback_comes_late(rows, tmp_path):
    arguments = make_arguments(tmp_path, save_strategy="no")
    trainer = Trainer(make_bert(), arguments, train_dataset=rows)
    trainer.model.hf_quantizer = object()
    trainer.add_callback(NxMCallback("ste"))
    with pytest.raises(ValueError, match="This model is quantized"):
        trainer.train()


# -- Trainers of others' making ----------------------------------------------------------------------------------------


class PairTrainer(Trainer):
    """In the manner of TRL: its own loss, its own metrics, and a log that carries them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.margins = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        margin = outputs.logits[:, 1] - outputs.logits[:, 0]
        self.margins.append(margin.mean().item())
        loss = torch.nn.functional.softplus(margin * (1 - 2 * labels)).mean()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        logs["margin"] = sum(self.margins) / max(len(self.margins), 1)
        super().log(logs, *args, **kwargs)


@pytest.mark.parametrize("recipe", SPARSE)
def test_a_trainer_with_a_loss_of_its_own_trains_sparsely(recipe, rows, tmp_path):
    config = NxMConfig(recipe, **PHASED)
    trainer = _trainer(tmp_path, rows, config, kind=PairTrainer, gradient_accumulation_steps=2, **OFTEN)
    trainer.train()
    assert verify(trainer.model).ok and all(verify(path).ok for path in tmp_path.glob("checkpoint-*"))
    assert all({"margin", "nxm/residual"} <= set(record) for record in trainer.state.log_history if "loss" in record)


@dataclasses.dataclass(frozen=True)
class Halve:
    """A user's own method, of no class of ours: the largest of each pair, and what is small fades by half a step."""

    def _mask(self, weight):
        one, two = weight.abs().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([one >= two, one < two], -1).flatten(-2)

    def init(self, weight, clock):
        return {}

    def before_step(self, weight, state, clock):
        pass

    def after_step(self, weight, state, clock):
        weight.mul_(torch.where(self._mask(weight), 1.0, 0.5))

    def finish(self, weight, state, clock):
        weight.masked_fill_(~self._mask(weight), 0.0).add_(0.0)


def test_a_users_own_method_needs_no_registration(rows, tmp_path):
    trainer = _trainer(tmp_path, rows, NxMConfig(Halve(), "1:2"), **OFTEN)
    trainer.train()
    assert verify(trainer.model, "1:2").ok and verify(tmp_path / "checkpoint-6").ok
    config = NxMConfig.from_pretrained(tmp_path / "checkpoint-6")
    assert (config.recipe, config.pattern) == ("asp", "1:2")  # what it was made by cannot be read back; its mask can


@pytest.mark.parametrize("recipe", ["sr-ste", "admm"])
def test_a_seq2seq_trainer_generates_with_the_weights_to_ship(recipe, rows, tmp_path):
    torch.manual_seed(0)
    words = dict(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(T5Config(**words))
    model.generation_config = GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    copies = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:4]} for row in rows]
    seen = []

    def compute_metrics(prediction):
        seen.append((_is_sparse(model), prediction.predictions.ndim))
        return {"exact": float((prediction.predictions[:, 1:5] == prediction.label_ids[:, :4]).mean())}

    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        predict_with_generate=True,
        generation_max_length=5,
        eval_strategy="steps",
        eval_steps=3,
        save_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=copies,
        eval_dataset=copies[:8],
        compute_metrics=compute_metrics,
        callbacks=[NxMCallback(NxMConfig(recipe, {"attention": "2:4", "ffn": "2:4"}))],
    )
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_loss"] == best
    trainer.predict(copies[:8])
    assert seen == [(True, 2)] * 4  # rows of tokens, not logits
    assert verify(model).ok and len(verify(model).layers) == 16
    assert all(verify(tmp_path / f"checkpoint-{step}").ok for step in (3, 6))
