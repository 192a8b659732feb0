"""NxMTrainer: all that transformers.Trainer does, with the sparse weights at every exit."""

import ast
import inspect
import random
from pathlib import Path

import numpy
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    set_seed,
)

from nxm_hf import NxMConfig, NxMTrainer, verify
from tests.support.grids import FEW, SPARSE, WINDOW
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_model
from tests.support.training import (
    ARGUMENTS,
    NO_DROPOUT,
    InterruptAt,
    RecordGradients,
    is_sparse,
    make_12_step_trainer,
    pruned_weights,
    without_times,
)

GROUPED = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in ARGUMENTS
    else {"group_by_length": True}
)
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in ARGUMENTS else "gradient_checkpointing"


def test_the_arguments_are_those_of_the_installed_trainer_and_four_more():
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (NxMTrainer, Trainer))
    assert list(ours.values())[: len(theirs)] == list(theirs.values())
    assert list(ours)[len(theirs) :] == ["sparsity", "teacher", "distillation", "fix_loss_scale"]
    documented = inspect.getdoc(NxMTrainer).split("Args:")[1].split("Raises:")[0]
    assert all(f"\n    {name}: " in documented for name in ours if name != "self")


def test_an_editor_is_shown_the_arguments_of_the_installed_trainer():
    """The first overload of `__init__` spells them out."""
    tree = ast.parse(Path(inspect.getfile(NxMTrainer)).read_text())
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "NxMTrainer")
    spelled = next(node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__").args
    theirs = inspect.signature(Trainer.__init__).parameters
    assert [argument.arg for argument in spelled.args] == list(theirs)
    defaults = [ast.literal_eval(default) for default in spelled.defaults]
    assert defaults == [parameter.default for parameter in theirs.values()][1:]


class KeywordTrainer(Trainer):
    """A Trainer of somebody else: fewer arguments, in another order, and a loss that takes keywords."""

    def __init__(self, model, ref_model, args, train_dataset=None, callbacks=None):
        super().__init__(model=model, args=args, train_dataset=train_dataset, callbacks=callbacks)
        self.ref_model, self.losses = ref_model, 0

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        self.losses += 1
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)


class Mixed(NxMTrainer, KeywordTrainer):
    pass


class MixedSeq2Seq(NxMTrainer, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize("teacher", [False, True], ids=["alone", "taught"])
@pytest.mark.parametrize("recipe", ["dense", "ste"])
def test_in_front_of_another_trainer_it_takes_that_ones_arguments(recipe, teacher, rows, tmp_path):
    more = {"teacher": make_bert(seed=1)} if teacher else {}
    trainer = Mixed(make_bert(), "reference", make_arguments(tmp_path, max_steps=2), rows, sparsity=recipe, **more)
    trainer.train()
    assert trainer.ref_model == "reference" and trainer.losses >= 2
    assert recipe == "dense" or verify(trainer.model).ok


def test_in_front_of_a_seq2seq_trainer_it_trains_an_encoder_decoder(tmp_path):
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, predict_with_generate=True
    )
    row = {"input_ids": torch.arange(2, 10), "labels": torch.arange(2, 10)}
    trainer = MixedSeq2Seq(
        make_model("t5"), arguments, train_dataset=[row] * 16, eval_dataset=[row] * 4, sparsity="asp"
    )
    trainer.train()
    assert trainer.predict([row] * 4, max_new_tokens=3).predictions is not None
    assert verify(trainer.model).ok


def test_dense_training_refuses_nothing_that_the_trainer_takes(rows, tmp_path):
    model = make_bert()
    model._device_mesh = object()
    arguments = make_arguments(tmp_path)
    NxMTrainer(model, arguments, train_dataset=rows, sparsity="dense")
    with pytest.raises(ValueError, match="tp_plan"):
        NxMTrainer(model, arguments, train_dataset=rows, sparsity="asp")


def test_a_checkpoint_that_is_not_there_is_an_error_that_says_so(rows, tmp_path):
    trainer = NxMTrainer(make_bert(), make_arguments(tmp_path), train_dataset=rows, sparsity="asp")
    with pytest.raises(ValueError, match="Can't find a valid checkpoint at nowhere: there is no such directory"):
        trainer.train(resume_from_checkpoint="nowhere")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_steps": 6},
        {"bf16": True},
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4},
        {"max_grad_norm": 0.0, **GROUPED},
        {"lr_scheduler_type": "cosine", "warmup_steps": 2, "optim": "adafactor"},
        {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1},
    ],
    ids=str,
)
def test_the_recipe_dense_is_the_trainer_bit_for_bit(changes, tmp_path):
    outcomes = []
    for kind in ("Trainer", "NxMTrainer"):
        trainer = make_12_step_trainer(tmp_path / kind, "dense", kind=kind, **changes)
        trainer.train()
        trainer.save_model(tmp_path / f"end-{kind}")
        chance = (torch.rand(3).tolist(), random.random(), numpy.random.rand())
        outcomes.append((trainer, chance, trainer.evaluate()["eval_loss"]))
    (plain, *plain_rest), (ours, *our_rest) = outcomes
    assert_equal_weights(ours.model, plain.model)
    assert our_rest == plain_rest and without_times(ours.state.log_history) == without_times(plain.state.log_history)
    theirs = plain.optimizer.state_dict()["state"]
    for index, state in ours.optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(theirs[index][k])) for k, v in state.items())
    names = [{path.name for path in (tmp_path / f"end-{kind}").iterdir()} for kind in ("Trainer", "NxMTrainer")]
    assert names[0] == names[1]
    assert not hasattr(ours.model.config, "nxm_config")


SETTLING, PULLING = "admm", "sr-ste"  # a dense copy of the weights; a pull that is added to gradients


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (PULLING, {"bf16": True}),
        (SETTLING, {"max_grad_norm": 0.0}),
        (PULLING, {CHECKPOINTING: True}),
        (SETTLING, {CHECKPOINTING: True}),
        (SETTLING, GROUPED),
        (PULLING, {"gradient_accumulation_steps": 2, "num_train_epochs": 1.0, "max_steps": -1}),
        (SETTLING, {"gradient_accumulation_steps": 2, "num_train_epochs": 1.0, "max_steps": -1}),
        (SETTLING, {"optim": "sgd", "learning_rate": 0.1}),
        (PULLING, {"optim": "adafactor"}),
        (SETTLING, {"torch_empty_cache_steps": 2, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 5}),
        (PULLING, {"auto_find_batch_size": True}),
        (SETTLING, {"auto_find_batch_size": True}),
        (PULLING, {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "dataloader_drop_last": True}),
        (
            SETTLING,
            {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "dataloader_drop_last": True},
        ),
        (PULLING, {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2}),
        (SETTLING, {"neftune_noise_alpha": 5.0}),
    ],
    ids=str,
)
def test_the_trainers_own_arguments_work(recipe, changes, tmp_path):
    trainer = make_12_step_trainer(tmp_path, NxMConfig(recipe, **WINDOW), **changes)
    trainer.train()
    assert is_sparse(trainer.model) and verify(trainer.model).density == 0.5
    assert all(
        parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in trainer.model.parameters()
    )
    assert [record["nxm/phase"] for record in trainer.state.log_history if "loss" in record][-1] == 2
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{trainer.state.global_step}")
    assert_equal_weights(last, trainer.model)


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    """Between forward and backward nothing is touched, so a forward pass that is run again sees the same weights."""
    ones = [
        make_12_step_trainer(tmp_path / str(on), "sr-ste", save_strategy="no", **{CHECKPOINTING: on})
        for on in (True, False)
    ]
    for trainer in ones:
        set_seed(0)
        trainer.train()
    assert_equal_weights(ones[0].model, ones[1].model)


@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_bf16_autocast_trains_fp32_weights_to_about_the_same_loss(recipe, tmp_path):
    losses, norms = [], []
    for on in (False, True):  # transformers 4.57 leaves bf16 on for later trainings
        model = make_bert(**NO_DROPOUT)
        trainer = make_12_step_trainer(
            tmp_path / str(on), recipe, model=model, bf16=on, save_strategy="no", logging_steps=12
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and norms[0] != norms[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch warns of its own parts
def test_a_compiled_model_trains_to_the_same_weights(tmp_path):
    """The weights are edited in place, so what was compiled goes on to see them; by which compiler is nothing to us."""
    trainers = []
    for compiled in (True, False):
        model = make_bert(**NO_DROPOUT, num_hidden_layers=1)
        words = dict(max_steps=4, save_steps=4, torch_compile=compiled, optim="sgd", learning_rate=0.1)
        words.update(torch_compile_backend="aot_eager" if compiled else None)  # needs no compiler of C++, nor its time
        trainers.append(make_12_step_trainer(tmp_path / str(compiled), "sr-ste", model=model, **words))
        trainers[-1].train()
    ours, eager = (pruned_weights(trainer.model) for trainer in trainers)
    for name, weight in eager.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)
    assert verify(trainers[0].model).ok and verify(tmp_path / "True" / "checkpoint-4").ok


def test_a_model_init_gives_each_training_a_new_model(tmp_path):
    made = []

    def init():
        made.append(make_bert())
        return made[-1]

    trainer = make_12_step_trainer(tmp_path, "sr-ste", model_init=init, save_strategy="no")
    trainer.train()
    first = trainer.model
    trainer.train()
    assert trainer.model is made[-1] is not first and len(made) >= 2
    assert_equal_weights(trainer.model, first)
    assert verify(trainer.model).ok


# -- every exit shows the deployed weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SPARSE)
def test_evaluations_predictions_and_checkpoints_of_every_phase_see_the_deployed_weights(recipe, rows, tmp_path):
    """At six steps with the recipes of FEW, at four with others."""
    seen, phases = {}, []
    steps, window = (12, WINDOW) if recipe in FEW else (8, {"warmup": 0.4, "settle": 0.4})

    class Predict(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            phases.append(trainer.engine.phase)
            seen[f"predict-{state.global_step}"] = None
            trainer.predict(rows[:8])

    def compute_metrics(prediction):
        step = trainer.state.global_step
        name = f"predict-{step}" if f"predict-{step}" in seen else f"evaluate-{step}"
        seen[name] = (pruned_weights(trainer.model), is_sparse(trainer.model))
        assert hasattr(trainer.model.config, "nxm_config")
        return {"loss_again": 0.0}

    trainer = make_12_step_trainer(
        tmp_path,
        NxMConfig(recipe, **window),
        callbacks=[Predict()],
        compute_metrics=compute_metrics,
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
    )
    trainer.train()
    trainer.save_model(tmp_path / "end")
    trainer.evaluate()
    assert set(phases) == {"warmup", "recipe", "settle"} and len(seen) == steps
    for step in range(2, steps + 2, 2):
        folder = tmp_path / f"checkpoint-{step}"
        assert verify(folder).ok
        saved = pruned_weights(AutoModelForSequenceClassification.from_pretrained(folder))
        for kind in ("evaluate", "predict"):
            weights, sparse = seen[f"{kind}-{step}"]
            assert sparse and all(torch.equal(weights[name], saved[name]) for name in saved)
    assert_equal_weights(AutoModelForSequenceClassification.from_pretrained(tmp_path / "end"), trainer.model)


def test_after_an_interrupt_what_is_saved_is_sparse_and_the_training_view_can_be_looked_at(rows, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(is_sparse(trainer.model))
        return {"seen": 0.0}

    trainer = make_12_step_trainer(
        tmp_path, "admm", callbacks=[InterruptAt(5)], compute_metrics=compute_metrics, save_strategy="no"
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    dense = pruned_weights(trainer.model)
    sparse, training = trainer.evaluate()["eval_loss"], trainer.evaluate(view="training")["eval_loss"]
    assert seen == [True, False] and sparse != training
    trainer.evaluate({"one": rows[:8], "two": rows[8:16]}, view="training")
    trainer.predict(rows[:8])
    assert seen == [True, False, False, False, True]
    trainer.save_model(tmp_path / "end")
    assert verify(tmp_path / "end").ok
    assert all(torch.equal(weight, dense[name]) for name, weight in pruned_weights(trainer.model).items())
    assert not hasattr(trainer.model.config, "nxm_config")


def test_a_view_is_one_of_two(tmp_path):
    with pytest.raises(ValueError, match='"deployed" or "training"; got \'dense\''):
        make_12_step_trainer(tmp_path, "ste").evaluate(view="dense")


def test_after_a_training_both_views_are_the_sparse_model(tmp_path):
    trainer = make_12_step_trainer(tmp_path, "admm", save_strategy="no")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate(view="training")["eval_loss"]


# -- logs and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", FEW)
def test_our_metrics_stand_in_the_record_of_the_loss_and_nowhere_else(recipe, rows, tmp_path):
    """What the metrics are is tested with every recipe in tests/engine/test_metrics.py."""
    reports = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            reports.append(dict(logs))

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            assert not any("nxm" in name for name in metrics)

    trainer = make_12_step_trainer(
        tmp_path,
        NxMConfig(recipe, **WINDOW),
        callbacks=[Reporter()],
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
    )
    output = trainer.train()
    names = {"nxm/density", "nxm/mask_similarity", "nxm/flip_rate", "nxm/residual", "nxm/phase"}
    for records in (trainer.state.log_history, reports):
        for record in records:
            ours = {name for name in record if name.startswith("nxm")}
            of_admm = {"nxm/iterations", "nxm/disagreement"} & ours  # while it runs
            assert ours - of_admm == (names if "loss" in record else set())
            assert bool(of_admm) == (recipe == "admm" and record.get("nxm/phase") == 1)
    losses = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["nxm/phase"] for record in losses] == [1, 1, 2, 2]  # a step's record shows what comes next
    assert not any("nxm" in name for name in (*trainer.evaluate(), *trainer.predict(rows[:8]).metrics, *output.metrics))


def test_pulls_are_added_to_clipped_gradients_once_a_step(tmp_path):
    """Pitfalls 6 and 7: the pull is no part of the norm that is clipped, and does not grow with accumulation."""
    rate, decay = 0.5, 0.1
    model, gradients = make_bert(**NO_DROPOUT), RecordGradients()
    before = pruned_weights(model)
    words = dict(optim="sgd", learning_rate=rate, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1e-3)
    trainer = make_12_step_trainer(
        tmp_path,
        NxMConfig("sr-ste", settings={"decay": decay}),
        model=model,
        callbacks=[gradients, InterruptAt(1)],
        gradient_accumulation_steps=4,
        save_strategy="no",
        **words,
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    (seen,) = gradients.gradients
    norm = torch.stack([gradient.norm() for gradient in seen.values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    for target, dense in trainer.engine.trained_weights():
        old = before[target.name]
        order = old.abs().unflatten(1, (-1, 4)).argsort(-1, descending=True)
        kept = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :2], True).flatten(1)
        step = seen[f"{target.name}.weight"] + decay * torch.where(kept, 0.0, old)
        torch.testing.assert_close(dense, old - rate * step, rtol=1e-6, atol=1e-8)


def test_an_optimizer_of_the_users_own_is_hooked_too(rows, tmp_path):
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
    assert is_sparse(model) and verify(model).ok


def test_two_trainers_in_one_process_know_nothing_of_each_other(tmp_path):
    """Pitfall 18: no state outside the objects."""
    first = make_12_step_trainer(tmp_path / "1", NxMConfig("sr-ste", "1:4"), model=make_bert(1), save_strategy="no")
    second = make_12_step_trainer(tmp_path / "2", "admm", model=make_bert(2), save_strategy="no")
    alone = make_12_step_trainer(tmp_path / "3", NxMConfig("sr-ste", "1:4"), model=make_bert(1), save_strategy="no")
    second.train()
    for trainer in (first, alone):
        set_seed(0)
        trainer.train()
    assert_equal_weights(first.model, alone.model)
    assert verify(first.model).density == 0.25 and verify(second.model).density == 0.5
