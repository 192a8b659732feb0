"""Trainings that few tests have: each has the result of the usual one, or ends sparse."""

from typing import ClassVar

import pytest
import torch
from transformers import BertForSequenceClassification, TrainerCallback
from transformers.trainer_utils import SchedulerType

from nxm_hf import prune, recipes, verify
from nxm_hf.layers.find import find_layers
from nxm_hf.storage.checkpoints import newest_complete
from tests.support.models import assert_equal_weights, make_bert
from tests.support.training import (
    KINDS,
    NO_DROPOUT,
    ROWS,
    RecordGradients,
    engine_of,
    eventful,
    is_sparse,
    make_trainer,
)

SPARSE = [name for name in recipes.names() if name != "dense"]
SHORT = dict(max_steps=4, gradient_accumulation_steps=1, save_strategy="no", logging_strategy="no")


@pytest.mark.parametrize("kind", KINDS)
def test_an_uneven_last_batch_counts_as_one_step(kind, tmp_path):
    """26 rows are 7 batches: two steps of 3 batches, and one of a single batch of 2 rows."""
    uneven = dict(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=3)
    trainer = make_trainer(tmp_path, eventful("admm"), kind, rows=ROWS[:26], **{**SHORT, **uneven})
    trainer.train()
    engine = engine_of(trainer)
    assert engine.step == engine.total_steps == trainer.state.global_step == 6
    assert verify(trainer.model).ok


def test_the_gradient_of_an_uneven_last_batch_is_the_mean_of_its_parts(tmp_path):
    """As that of every step is. `asp` at a learning rate of zero leaves the weights as they begin."""
    recorder, model = RecordGradients(), make_bert(**NO_DROPOUT)
    still = dict(max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=3, learning_rate=0.0, max_grad_norm=0.0)
    rows = [ROWS[0]] * 16 + [ROWS[1]] * 4  # taken in order: 3 batches, then 2, of which one has other rows
    trainer = make_trainer(tmp_path, "asp", model=model, rows=rows, callbacks=[recorder], **{**SHORT, **still})
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    assert len(recorder.gradients) == 2
    for gradients, batches in zip(recorder.gradients, ([ROWS[0]], [ROWS[0], ROWS[1]]), strict=True):
        model.train().zero_grad()
        for row in batches:
            (model(**{name: value[None] for name, value in row.items()}).loss / len(batches)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


class EvaluateAt(TrainerCallback):
    """Evaluates inside an accumulation, and looks at the weights that are evaluated."""

    def __init__(self, step: int):
        self.step, self.trainer, self.were_sparse = step, None, []

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.trainer.evaluate()

    def on_prediction_step(self, args, state, control, **kwargs):
        self.were_sparse.append(is_sparse(self.trainer.model))


@pytest.mark.parametrize("recipe", ["admm", "ste", "sr-ste"])
def test_an_evaluation_inside_an_accumulation_is_sparse_and_changes_nothing(recipe, tmp_path):
    ends = []
    for step in (2, None):
        callback = EvaluateAt(step)
        words = {**SHORT, "gradient_accumulation_steps": 2}
        model = make_bert(**NO_DROPOUT)  # an evaluation draws random numbers, as it does in a plain Trainer
        trainer = make_trainer(tmp_path, eventful(recipe), model=model, callbacks=[callback], **words)
        callback.trainer = trainer
        trainer.train()
        assert all(callback.were_sparse) and bool(callback.were_sparse) == (step is not None)
        ends.append(trainer.model)
    assert_equal_weights(*ends)


@pytest.mark.parametrize("schedule", [name.value for name in SchedulerType])
def test_every_learning_rate_schedule_ends_sparse(schedule, tmp_path):
    """Rates may be zero at first, jump up again, or follow the evaluations."""
    words = dict(lr_scheduler_type=schedule, warmup_steps=1)
    if schedule in ("reduce_lr_on_plateau", "greedy"):
        words |= dict(eval_strategy="steps", eval_steps=2)
    if schedule in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        words |= dict(lr_scheduler_kwargs={"min_lr": 1e-4})
    if schedule == "warmup_stable_decay":
        words |= dict(lr_scheduler_kwargs={"num_decay_steps": 2})
    trainer = make_trainer(tmp_path, eventful("sr-ste"), **{**SHORT, **words})
    trainer.train()
    assert trainer.engine.finished and verify(trainer.model).ok and is_sparse(trainer.model)


def test_a_training_resumes_with_another_schedule_of_the_learning_rate(tmp_path):
    begun = dict(save_strategy="steps", save_steps=2, lr_scheduler_type="linear")
    make_trainer(tmp_path, eventful("admm"), **{**SHORT, **begun}).train()
    trainer = make_trainer(tmp_path, eventful("admm"), begin=5, **{**SHORT, **begun, "lr_scheduler_type": "cosine"})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4 and verify(trainer.model).ok


def test_token_embeddings_are_resized_after_pruning(tmp_path):
    model = make_bert()
    prune(model, "2:4")
    pruned = {layer.name: layer.weight.detach().clone() for layer in find_layers(model)}
    model.resize_token_embeddings(77)
    assert verify(model).ok
    assert all(torch.equal(layer.weight, pruned[layer.name]) for layer in find_layers(model))
    model.save_pretrained(tmp_path / "saved")
    assert verify(tmp_path / "saved").ok
    trainer = make_trainer(tmp_path, "fix", model=type(model).from_pretrained(tmp_path / "saved"), **SHORT)
    trainer.train()
    assert trainer.model.get_input_embeddings().num_embeddings == 77 and verify(trainer.model).ok


UP = "bert.encoder.layer.{}.intermediate.dense.{}"


class SharedBert(BertForSequenceClassification):
    """Two blocks share a module, and the class says so."""

    _tied_weights_keys: ClassVar = {UP.format(1, part): UP.format(0, part) for part in ("weight", "bias")}

    def __init__(self, config):
        super().__init__(config)
        first, second = self.bert.encoder.layer
        second.intermediate.dense = first.intermediate.dense


def make_shared(seed: int) -> BertForSequenceClassification:
    config = make_bert().config
    torch.manual_seed(seed)
    return SharedBert(config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["admm", "sr-ste"])
def test_a_module_that_two_blocks_share_trains_once_and_is_saved_and_resumed(recipe, kind, tmp_path):
    words = {**SHORT, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(tmp_path, eventful(recipe), kind, model=make_shared(0), **words)
    trainer.train()
    assert len(engine_of(trainer).plan.targets) == 11 and verify(trainer.model).ok
    again = make_trainer(tmp_path, eventful(recipe), kind, begin=5, model=make_shared(5), **words)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(trainer.model, again.model)


def test_sharing_that_the_class_does_not_declare_is_refused_at_the_save_and_leaves_no_checkpoint(tmp_path):
    """By transformers, which could not load such a model."""
    model = make_bert()
    first, second = model.bert.encoder.layer
    second.intermediate.dense = first.intermediate.dense
    trainer = make_trainer(tmp_path, "asp", model=model, **{**SHORT, "save_strategy": "steps", "save_steps": 2})
    with pytest.raises(RuntimeError, match=r"shared tensors.*layer\.1\.intermediate\.dense\.weight"):
        trainer.train()
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        newest_complete(tmp_path)


class FreezeAt(TrainerCallback):
    """Freezes the first layers after two steps, as gradual unfreezing does the other way round."""

    def __init__(self, count: int | None):
        self.count = count

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            for layer in find_layers(model)[: self.count]:
                layer.weight.requires_grad_(False)


@pytest.mark.parametrize("count", [3, None], ids=["some", "all"])
@pytest.mark.parametrize("recipe", SPARSE)
def test_layers_that_are_frozen_during_the_training_end_sparse(recipe, count, tmp_path):
    trainer = make_trainer(tmp_path, eventful(recipe), callbacks=[FreezeAt(count)], **SHORT)
    trainer.train()
    assert trainer.engine.finished and verify(trainer.model).ok and is_sparse(trainer.model)
    trainer.save_model(tmp_path / "saved")
    assert verify(tmp_path / "saved").ok
