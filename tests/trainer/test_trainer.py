"""NxMTrainer: all that transformers.Trainer does, with the sparse weights at every exit."""

import dataclasses
import logging
import random

import numpy
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from nxm_hf import NxMCallback, NxMConfig, NxMTrainer, recipes, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.trainer.unsupported import refuse_unsupported
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows

SPARSE = [name for name in recipes.names() if name != "dense"]
PHASED = dict(warmup=0.25, settle=0.25)  # of 12 steps: warmup until 3, the recipe until 9, then settle
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"
CLOCK = ("runtime", "per_second")  # what a record says of the time of day


def _trainer(folder, rows, sparsity="ste", model=None, kind=NxMTrainer, callbacks=None, **changes):
    given = {} if kind is Trainer else {"sparsity": sparsity}
    given |= {
        name: changes.pop(name) for name in ("compute_metrics", "fix_loss_scale", "model_init") if name in changes
    }
    if "model_init" not in given:
        given["model"] = model or make_bert()
    return kind(
        args=make_arguments(folder, **changes),
        train_dataset=rows,
        eval_dataset=rows[:16],
        callbacks=callbacks,
        **given,
    )


def _weights(model):
    return {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}


def _is_sparse(model, m=4, n=2):
    """Whether every layer keeps at most n of m consecutive inputs; counted by hand."""
    counts = [(layer.weight.detach().unflatten(1, (-1, m)) != 0).sum(-1).max() for layer in find_layers(model)]
    return max(counts) <= n


def _records(trainer):
    return [
        {key: value for key, value in record.items() if not key.endswith(CLOCK)} for record in trainer.state.log_history
    ]


# -- dense is the Trainer, bit for bit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_steps": 6},
        {"bf16": True},
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4},
        {"max_grad_norm": 0.0, "train_sampling_strategy": "group_by_length"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "optim": "adafactor"},
        {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1},
    ],
    ids=str,
)
def test_the_recipe_dense_is_the_trainer_bit_for_bit(changes, rows, tmp_path):
    outcomes = []
    for kind in (Trainer, NxMTrainer):
        trainer = _trainer(tmp_path / kind.__name__, rows, "dense", kind=kind, **changes)
        trainer.train()
        trainer.save_model(tmp_path / f"end-{kind.__name__}")
        chance = (torch.rand(3).tolist(), random.random(), numpy.random.rand())
        outcomes.append((trainer, chance, trainer.evaluate()["eval_loss"]))
    (plain, *plain_rest), (ours, *our_rest) = outcomes
    assert_equal_weights(ours.model, plain.model)
    assert our_rest == plain_rest and _records(ours) == _records(plain)
    theirs = plain.optimizer.state_dict()["state"]
    for index, state in ours.optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[index][k])) for k, v in state.items())
    names = [{path.name for path in (tmp_path / f"end-{kind}").iterdir()} for kind in ("Trainer", "NxMTrainer")]
    assert names[0] == names[1]
    assert not hasattr(ours.model.config, "nxm_config")


# -- gradient accumulation ---------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, as they stand before the optimizer steps."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def _first_step(folder, rows, times, model, **changes):
    """Gradients and logged loss of one step over 8 rows, in `times` parts."""
    words = dict(max_steps=1, logging_steps=1, save_strategy="no", max_grad_norm=0.0)
    words |= dict(per_device_train_batch_size=8 // times, gradient_accumulation_steps=times)
    gradients = Gradients()
    trainer = _trainer(folder, rows, model=model, callbacks=[gradients], **{**words, **changes})
    trainer.train()
    return trainer, gradients.seen[0], trainer.state.log_history[0]["loss"]


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_accumulated_gradients_are_those_of_the_larger_batch(recipe, times, rows, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nxm_hf"):
        _, whole, loss = _first_step(tmp_path, rows, 1, make_bert(**NO_DROPOUT), sparsity=recipe)
        assert not caplog.records  # nothing to correct, nothing to say
        _, parts, mean = _first_step(tmp_path, rows, times, make_bert(**NO_DROPOUT), sparsity=recipe)
    assert mean == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert f"would count {times} times; corrected. fix_loss_scale=False leaves it." in record.message
    assert record.message.startswith("BertForSequenceClassification ignores num_items_in_batch")


def test_the_correction_is_said_once_in_a_training_and_the_model_keeps_its_dropout(rows, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nxm_hf"):
        trainer = _trainer(tmp_path, rows, max_steps=6, gradient_accumulation_steps=2)
        trainer.train()
    assert sum("corrected" in record.message for record in caplog.records) == 1
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert all(0.4 < loss < 1.0 for loss in losses)  # about log 2, not twice that


@pytest.mark.parametrize("times", [2, 4])
def test_without_the_correction_the_loss_is_upstreams(times, rows, tmp_path, caplog):
    """The forward pass of `admm` is dense, so its first step must be just the Trainer's."""
    with caplog.at_level(logging.INFO, "nxm_hf"):
        words = dict(sparsity="admm", fix_loss_scale=False)
        _, ours, loss = _first_step(tmp_path, rows, times, make_bert(**NO_DROPOUT), **words)
    _, plain, upstream = _first_step(tmp_path, rows, times, make_bert(**NO_DROPOUT), kind=Trainer)
    assert loss == upstream and all(torch.equal(ours[name], gradient) for name, gradient in plain.items())
    assert not [record for record in caplog.records if "corrected" in record.message]


@pytest.mark.parametrize(
    "config",
    [
        AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, resid_pdrop=0.0,
                             embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1),
        AutoConfig.for_model("llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
                             intermediate_size=64, max_position_embeddings=32),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_head_that_honours_num_items_in_batch_is_left_alone(config, rows, tmp_path, caplog):
    texts = [{**row, "labels": row["input_ids"]} for row in rows]
    models = [AutoModelForCausalLM.from_config(config) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    with caplog.at_level(logging.INFO, "nxm_hf"):
        _, whole, loss = _first_step(tmp_path, texts, 1, models[0])
        trainer, parts, mean = _first_step(tmp_path, texts, 4, models[1])
    assert trainer.model_accepts_loss_kwargs and not any("corrected" in record.message for record in caplog.records)
    assert mean == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


# -- the arguments of a Trainer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"max_grad_norm": 0.0},
        {CHECKPOINTING: True},
        {"train_sampling_strategy": "group_by_length"},
        {"gradient_accumulation_steps": 2, "num_train_epochs": 1.0, "max_steps": -1},
        {"optim": "sgd", "learning_rate": 0.1},
        {"optim": "adafactor"},
        {"torch_empty_cache_steps": 2, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 5},
        {"auto_find_batch_size": True},
        {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "dataloader_drop_last": True},
        {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("recipe", ["sr-ste", "admm"])
def test_the_trainers_own_arguments_work(recipe, changes, rows, tmp_path):
    trainer = _trainer(tmp_path, rows, NxMConfig(recipe, **PHASED), **changes)
    trainer.train()
    assert _is_sparse(trainer.model) and verify(trainer.model).density == 0.5
    assert all(
        parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in trainer.model.parameters()
    )
    assert [record["nxm/phase"] for record in trainer.state.log_history if "loss" in record][-1] == 2
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{trainer.state.global_step}")
    assert_equal_weights(last, trainer.model)


def test_gradient_checkpointing_changes_no_weight(rows, tmp_path):
    """Between forward and backward nothing is touched, so a forward pass that is run again sees the same weights."""
    ones = [
        _trainer(tmp_path / str(on), rows, "sr-ste", save_strategy="no", **{CHECKPOINTING: on}) for on in (True, False)
    ]
    for trainer in ones:
        set_seed(0)
        trainer.train()
    assert_equal_weights(ones[0].model, ones[1].model)


@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_bf16_autocast_trains_fp32_weights_to_about_the_same_loss(recipe, rows, tmp_path):
    losses = []
    for on in (True, False):
        model = make_bert(**NO_DROPOUT)
        trainer = _trainer(tmp_path / str(on), rows, recipe, model, bf16=on, save_strategy="no", logging_steps=12)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch warns of its own parts
def test_a_compiled_model_trains_to_the_same_weights(rows, tmp_path):
    """The weights are edited in place, so what was compiled goes on to see them; by which compiler is nothing to us."""
    trainers = []
    for compiled in (True, False):
        model = make_bert(**NO_DROPOUT, num_hidden_layers=1)
        words = dict(max_steps=4, save_steps=4, torch_compile=compiled, optim="sgd", learning_rate=0.1)
        words.update(torch_compile_backend="aot_eager" if compiled else None)  # needs no compiler of C++, nor its time
        trainers.append(_trainer(tmp_path / str(compiled), rows, "sr-ste", model, **words))
        trainers[-1].train()
    ours, eager = (_weights(trainer.model) for trainer in trainers)
    for name, weight in eager.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)
    assert verify(trainers[0].model).ok and verify(tmp_path / "True" / "checkpoint-4").ok


def test_a_model_init_gives_each_training_a_new_model(rows, tmp_path):
    made = []

    def init():
        made.append(make_bert())
        return made[-1]

    trainer = _trainer(tmp_path, rows, "sr-ste", model_init=init, save_strategy="no")
    trainer.train()
    first = trainer.model
    trainer.train()
    assert trainer.model is made[-1] is not first and len(made) >= 2
    assert_equal_weights(trainer.model, first)
    assert verify(trainer.model).ok


# -- every exit shows what would be shipped ----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SPARSE)
def test_evaluations_predictions_and_checkpoints_of_every_phase_see_the_weights_to_ship(recipe, rows, tmp_path):
    seen, phases = {}, []

    class Predict(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            phases.append(trainer._bridge.engine.phase)
            seen[f"predict-{state.global_step}"] = None
            trainer.predict(rows[:8])

    def compute_metrics(prediction):
        step = trainer.state.global_step
        name = f"predict-{step}" if f"predict-{step}" in seen else f"evaluate-{step}"
        seen[name] = (_weights(trainer.model), _is_sparse(trainer.model))
        assert hasattr(trainer.model.config, "nxm_config")
        return {"loss_again": 0.0}

    trainer = _trainer(
        tmp_path,
        rows,
        NxMConfig(recipe, **PHASED),
        callbacks=[Predict()],
        compute_metrics=compute_metrics,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
    )
    trainer.train()
    trainer.save_model(tmp_path / "end")
    trainer.evaluate()
    assert set(phases) == {"warmup", "recipe", "settle"} and len(seen) == 12
    for step in range(2, 14, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert verify(folder).ok
        saved = _weights(AutoModelForSequenceClassification.from_pretrained(folder))
        for kind in ("evaluate", "predict"):
            weights, sparse = seen[f"{kind}-{step}"]
            assert sparse and all(torch.equal(weights[name], saved[name]) for name in saved)
    assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "end"), trainer.model)


class Break(TrainerCallback):
    """Breaks the training off, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_after_an_interrupt_what_is_saved_is_sparse_and_the_training_view_can_be_looked_at(rows, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(_is_sparse(trainer.model))
        return {"seen": 0.0}

    trainer = _trainer(
        tmp_path, rows, "admm", callbacks=[Break(5)], compute_metrics=compute_metrics, save_strategy="no"
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    dense = _weights(trainer.model)
    sparse, training = trainer.evaluate()["eval_loss"], trainer.evaluate(view="training")["eval_loss"]
    assert seen == [True, False] and sparse != training
    trainer.evaluate({"one": rows[:8], "two": rows[8:16]}, view="training")
    trainer.predict(rows[:8])
    assert seen == [True, False, False, False, True]
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok
    assert all(torch.equal(weight, dense[name]) for name, weight in _weights(trainer.model).items())
    assert not hasattr(trainer.model.config, "nxm_config")


def test_a_view_is_one_of_two(rows, tmp_path):
    with pytest.raises(ValueError, match='"deployed" or "training"; got \'dense\''):
        _trainer(tmp_path, rows).evaluate(view="dense")


def test_after_a_training_both_views_are_the_sparse_model(rows, tmp_path):
    trainer = _trainer(tmp_path, rows, "admm", save_strategy="no")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate(view="training")["eval_loss"]


def test_other_callbacks_see_the_finished_model_when_training_ends(rows, tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            seen.append((_is_sparse(model), hasattr(model.config, "nxm_config"), _weights(model)))

    trainer = _trainer(tmp_path, rows, "admm", callbacks=[Look()], save_strategy="no")
    trainer.add_callback(Look())
    trainer.train()
    assert len(seen) == 2
    for sparse, stamped, weights in seen:
        assert sparse and stamped
        assert all(torch.equal(weights[name], weight) for name, weight in _weights(trainer.model).items())


def test_once_it_is_finished_the_model_is_an_ordinary_one(rows, tmp_path):
    """Nothing of ours is left on the optimizer, so a step of it revives pruned weights as of any model."""
    trainer = _trainer(tmp_path, rows, "asp", save_strategy="no")
    trainer.train()
    layer = find_layers(trainer.model)[0]
    layer.weight.grad = torch.ones_like(layer.weight)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1.0
    trainer.optimizer.step()
    assert not _is_sparse(trainer.model)


# -- the best model ----------------------------------------------------------------------------------------------------


def _choosing(folder, rows, config, best, **changes):
    """A training whose `best`-th evaluation is the best, and what each evaluation has seen."""
    seen = []

    def compute_metrics(prediction):
        seen.append(float(numpy.abs(prediction.predictions).sum()))
        return {"choice": float(len(seen) == best), "seen": seen[-1]}

    words = dict(eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True, greater_is_better=True)
    words |= dict(metric_for_best_model="choice", compute_metrics=compute_metrics)
    return _trainer(folder, rows, config, **{**words, **changes}), seen


@pytest.mark.parametrize("best", [1, 3, 6], ids=["warmup", "recipe", "settle"])
@pytest.mark.parametrize("recipe", SPARSE)
def test_the_best_model_is_the_one_that_was_measured_whatever_its_phase(recipe, best, rows, tmp_path, caplog):
    """Pitfall 30: what is loaded is finished already, and must not be pruned a second time by later masks."""
    trainer, seen = _choosing(tmp_path, rows, NxMConfig(recipe, **PHASED), best)
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
    trainer, _ = _choosing(tmp_path, rows, NxMConfig("admm", **PHASED), 0, **words)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok


@pytest.mark.skipif("nomic_bert" not in CONFIG_MAPPING, reason="this version of transformers has no nomic_bert")
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_a_best_model_that_transformers_does_not_restore_whole_is_an_error(recipe, rows, tmp_path):
    """Families that save under other names than they compute with: nothing of them is loaded, with only a warning."""
    words = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("nomic_bert", **words))
    trainer, seen = _choosing(tmp_path, rows, recipe, 1, model=model)
    try:
        trainer.train()
    except ValueError as error:
        assert "transformers has not restored this kind of model whole" in str(error)
        assert "load the weights with from_pretrained" in str(error)
        assert verify(tmp_path / "checkpoint-2").ok
    else:  # a version of transformers that does
        trainer.evaluate()
        assert seen[-1] == seen[0]


def test_one_checkpoint_is_kept_where_one_is_asked_for_and_it_is_the_best(rows, tmp_path):
    trainer, seen = _choosing(tmp_path, rows, NxMConfig("admm", **PHASED), 3, save_total_limit=1)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    trainer.evaluate()
    assert seen[-1] == seen[2] and verify(tmp_path / "checkpoint-6").ok


def test_checkpoints_of_models_only_hold_no_state_and_the_best_of_them_loads(rows, tmp_path):
    trainer, seen = _choosing(tmp_path, rows, NxMConfig("sr-ste", **PHASED), 3, save_only_model=True)
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
    trainer, seen = _choosing(tmp_path, rows, NxMConfig(recipe, **PHASED), 1, **words)
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer.train()
    assert trainer.state.global_step == 6 and _is_sparse(trainer.model) and verify(trainer.model).ok
    (record,) = [record for record in caplog.records if record.name == "nxm_hf"]
    assert "Training ends at step 6 of 12, in the phase 'recipe'" in record.message
    residual = float(record.message.split(" of the norm")[0].split()[-1])
    assert 0.1 < residual < 0.9
    trainer.evaluate()
    assert seen[-1] == seen[0 if load_best else 2]


def test_a_whole_training_warns_of_nothing(rows, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        _trainer(tmp_path, rows, NxMConfig("admm", **PHASED)).train()
    assert not caplog.records


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SPARSE)
def test_our_metrics_stand_in_the_record_of_the_loss_and_nowhere_else(recipe, rows, tmp_path):
    reports = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            reports.append(dict(logs))

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            assert not any("nxm" in name for name in metrics)

    trainer = _trainer(
        tmp_path, rows, NxMConfig(recipe, **PHASED), callbacks=[Reporter()], eval_strategy="steps", eval_steps=3
    )
    output = trainer.train()
    names = {"nxm/density", "nxm/mask_similarity", "nxm/flip_rate", "nxm/residual", "nxm/phase"}
    for records in (trainer.state.log_history, reports):
        for record in records:
            ours = {name for name in record if name.startswith("nxm")}
            assert ours == (names if "loss" in record else set())
    losses = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["nxm/phase"] for record in losses] == [1, 1, 2, 2]  # a step's record shows what comes next
    assert not any("nxm" in name for name in (*trainer.evaluate(), *trainer.predict(rows[:8]).metrics, *output.metrics))


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_pulls_are_added_to_clipped_gradients_once_a_step(rows, tmp_path):
    """Pitfalls 6 and 7: the pull is no part of the norm that is clipped, and does not grow with accumulation."""
    rate, decay = 0.5, 0.1
    model, gradients = make_bert(**NO_DROPOUT), Gradients()
    before = _weights(model)
    words = dict(optim="sgd", learning_rate=rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1e-3)
    trainer = _trainer(
        tmp_path,
        rows,
        NxMConfig("sr-ste", settings={"decay": decay}),
        model,
        callbacks=[gradients, Break(1)],
        gradient_accumulation_steps=4,
        save_strategy="no",
        **words,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    (seen,) = gradients.seen
    norm = torch.stack([gradient.norm() for gradient in seen.values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    for target, dense in trainer._bridge.engine.trained_weights():
        old = before[target.name]
        order = old.abs().unflatten(1, (-1, 4)).argsort(-1, descending=True)
        kept = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :2], True).flatten(1)
        step = seen[f"{target.name}.weight"] + decay * torch.where(kept, 0.0, old)
        torch.testing.assert_close(dense, old - rate * step, rtol=1e-6, atol=1e-8)


def test_an_optimizer_of_the_users_own_is_bracketed_too(rows, tmp_path):
    model = make_bert()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    trainer = NxMTrainer(
        model,
        make_arguments(tmp_path, save_strategy="no"),
        train_dataset=rows,
        sparsity="sr-ste",
        optimizers=(optimizer, None),
    )
    trainer.train()
    assert _is_sparse(model) and verify(model).ok


# -- hyper-parameter search --------------------------------------------------------------------------------------------


def _search(trainer, space, trials=2, **changes):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return trainer.hyperparameter_search(hp_space=space, n_trials=trials, backend="optuna", sampler=sampler, **changes)


class Trials(TrainerCallback):
    """The configs that the trials were trained with."""

    def __init__(self):
        self.seen = []

    def on_train_end(self, args, state, control, model, **kwargs):
        stamp = getattr(model.config, "nxm_config", None)
        assert stamp is None or verify(model).ok
        self.seen.append((stamp and NxMConfig.from_dict(stamp), args.learning_rate))


@pytest.mark.slow
@pytest.mark.parametrize("load_best", [True, False])
def test_a_search_sets_the_recipe_of_each_trial(load_best, rows, tmp_path):
    trials = Trials()
    words = dict(eval_strategy="steps", eval_steps=3, save_steps=3, max_steps=6, load_best_model_at_end=load_best)
    trainer = _trainer(
        tmp_path,
        rows,
        NxMConfig("admm", settings={"dual": False}),
        model_init=lambda: make_bert(),
        callbacks=[trials],
        **words,
    )
    asked = []

    def space(trial):
        asked.append(
            {
                "sparsity.rho": trial.suggest_float("sparsity.rho", 1e-4, 1e-1, log=True),
                "sparsity.warmup": trial.suggest_categorical("sparsity.warmup", [0.1, 0.2]),
                "sparsity.pattern": trial.suggest_categorical("sparsity.pattern", ["2:4", "1:4"]),
                "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2),
            }
        )
        if len(asked) == 1:
            asked[0]["sparsity.start"] = "B"  # of this trial alone
        return dict(asked[-1])

    best = _search(trainer, space, 3)
    assert len(trials.seen) == 3 and len({ask["sparsity.rho"] for ask in asked}) == 3
    for ask, (config, rate) in zip(asked, trials.seen, strict=True):
        settings = {"dual": False} | {
            key: ask[f"sparsity.{key}"] for key in ("rho", "start") if f"sparsity.{key}" in ask
        }
        assert config == NxMConfig("admm", ask["sparsity.pattern"], settings, warmup=ask["sparsity.warmup"])
        assert rate == ask["learning_rate"]
    assert any(best.hyperparameters.items() <= ask.items() for ask in asked)
    assert verify(tmp_path / "run-2" / "checkpoint-6").ok


def test_the_objective_of_a_search_is_the_evaluation_alone(rows, tmp_path):
    """The default objective sums the metrics of the evaluation, so that none of ours may be among them."""
    trainer = _trainer(
        tmp_path, rows, "ste", model_init=lambda: make_bert(), eval_strategy="steps", eval_steps=3, max_steps=3
    )
    best = _search(trainer, lambda trial: {"sparsity.refresh": trial.suggest_int("sparsity.refresh", 1, 2)}, 1)
    (evaluated,) = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert best.objective == evaluated


def test_an_unknown_key_of_a_search_is_an_error_that_lists_the_right_ones(rows, tmp_path):
    trainer = _trainer(tmp_path, rows, "admm", model_init=lambda: make_bert())
    with pytest.raises(ValueError, match=r"no 'roh' to set; the recipe 'admm' has rho, steps.*the config has.*settle"):
        _search(trainer, lambda trial: {"sparsity.roh": trial.suggest_float("sparsity.roh", 0.1, 0.2)})


@pytest.mark.slow
def test_a_search_may_choose_the_recipe_itself(rows, tmp_path):
    trials = Trials()
    words = dict(eval_strategy="steps", eval_steps=3, max_steps=3, save_strategy="no")
    trainer = _trainer(tmp_path, rows, "dense", model_init=lambda: make_bert(), callbacks=[trials], **words)
    names = iter(("ste", "dense", "admm"))
    _search(trainer, lambda trial: {"sparsity.recipe": next(names)}, 3)
    assert [config and config.recipe for config, _ in trials.seen] == ["ste", None, "admm"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_a_trial_that_is_pruned_does_not_stop_the_search(recipe, rows, tmp_path):
    """optuna's pruning ends a training from inside an evaluation, before the best model is loaded."""
    optuna = pytest.importorskip("optuna")

    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1 and trial.last_step >= 4

    words = dict(eval_strategy="steps", eval_steps=2, save_steps=2, max_steps=6, load_best_model_at_end=True)
    trials = Trials()
    trainer = _trainer(tmp_path, rows, recipe, model_init=lambda: make_bert(), callbacks=[trials], **words)
    space = lambda trial: {"sparsity.settle": trial.suggest_categorical("sparsity.settle", [0.1, 0.3])}  # noqa: E731
    best = _search(trainer, space, 3, pruner=Second())
    assert best.run_id in ("0", "2")
    assert len(trials.seen) == 3 and all(config for config, _ in trials.seen)


# -- refused when it is made -------------------------------------------------------------------------------------------


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
        ({"deepspeed": "zero.json"}, "DeepSpeed.*DDP"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP.*DDP"),
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
        (lambda args, model: setattr(args, "fsdp", True), "FSDP.*DDP"),
        (lambda args, model: setattr(model, "hf_device_map", {"bert": 0, "classifier": "cpu"}), "device_map.*DDP"),
        (lambda args, model: setattr(model, "_device_mesh", object()), "tp_plan.*DDP"),
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


def test_our_callback_inside_our_trainer_is_refused(arguments):
    with pytest.raises(ValueError, match="use one of them"):
        NxMTrainer(make_bert(), arguments(), sparsity="ste", callbacks=[NxMCallback("ste")])


def test_an_optimizer_that_does_not_hold_the_layers_is_refused(rows, arguments):
    model = make_bert()
    optimizer = torch.optim.AdamW(model.classifier.parameters())
    trainer = NxMTrainer(model, arguments(), train_dataset=rows, sparsity="ste", optimizers=(optimizer, None))
    with pytest.raises(ValueError, match=r"12 layers.*are not held by the optimizer"):
        trainer.train()


def test_what_the_pattern_does_not_fit_may_be_skipped_and_is_named(rows, tmp_path, caplog):
    model = make_bert(intermediate_size=66)  # 66 = 4 * 16 + 2: what comes out of it does not divide
    with pytest.raises(ValueError, match=r"does not fit 2 layers:\n  bert\.encoder\.layer\.0\.output\.dense"):
        _trainer(tmp_path, rows, "ste", model)
    trainer = _trainer(tmp_path, rows, NxMConfig("ste", on_indivisible="skip"), model, save_strategy="no")
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        trainer.train()
    (record,) = caplog.records
    assert "Left dense" in record.message and "bert.encoder.layer.1.output.dense" in record.message
    assert len(verify(model).layers) == 10 and verify(model).ok
    assert model.bert.encoder.layer[0].output.dense.weight.count_nonzero() > 32 * 66 * 0.9


def test_two_trainers_in_one_process_know_nothing_of_each_other(rows, tmp_path):
    """Pitfall 18: no state outside the objects."""
    first = _trainer(tmp_path / "1", rows, NxMConfig("sr-ste", "1:4"), make_bert(1), save_strategy="no")
    second = _trainer(tmp_path / "2", rows, "admm", make_bert(2), save_strategy="no")
    alone = _trainer(tmp_path / "3", rows, NxMConfig("sr-ste", "1:4"), make_bert(1), save_strategy="no")
    second.train()
    for trainer in (first, alone):
        set_seed(0)
        trainer.train()
    assert_equal_weights(first.model, alone.model)
    assert verify(first.model).density == 0.25 and verify(second.model).density == 0.5


def test_rows_are_what_these_tests_think():
    assert len(make_rows()) == 64 and {int(row["labels"]) for row in make_rows()} == {0, 1}
