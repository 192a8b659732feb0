"""Distillation in a training: with every recipe, resumed, evaluated, and with a weight of zero."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Trainer,
)

from nxm_hf import DistillationConfig, verify
from tests.support.distillation import make_student
from tests.support.grids import FEW, RECIPES
from tests.support.models import assert_equal_weights, make_arguments, make_bert
from tests.support.training import STEPS, SaveAt, assert_same_end, contents, eventful, make_trainer


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_from_a_teacher_and_resumes_bit_for_bit(recipe, tmp_path):
    """That the teacher changes the weights, and bf16, are tested with the recipes of FEW."""
    taught = dict(bf16=recipe in FEW, teacher=make_bert(3), distillation={"weight": 0.7, "hidden": 0.1})
    whole = make_trainer(tmp_path / "whole", eventful(recipe), callbacks=[SaveAt(3, STEPS)], **taught)
    whole.train()
    assert whole.model.config.hidden_dropout_prob > 0  # which a resumed training must draw alike
    again = make_trainer(tmp_path / "again", eventful(recipe), begin=5, callbacks=[SaveAt(STEPS)], **taught)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_end(whole, again, 3)
    assert recipe == "dense" or verify(whole.model).ok
    if recipe in FEW:
        alone = make_trainer(tmp_path / "alone", eventful(recipe), bf16=True, save_strategy="no")
        alone.train()
        weights = whole.model.state_dict()
        assert sum(not torch.equal(x, weights[name]) for name, x in alone.model.state_dict().items()) > 20


RESUMED = {
    "another": (4, {}, r"trained with the teacher BertForSequenceClassification, and .* has the teacher "
                r"BertForSequenceClassification, whose weights differ\. Resume with that teacher"),
    "none": (None, {"distillation": None}, r"and this training has no teacher\. Resume with that teacher, teacher="),
    "the same": (3, {}, None),
    "the same, weighed otherwise": (3, {"distillation": {"weight": 0.2}}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_has_the_teacher_that_it_had(name, tmp_path, caplog):
    seed, changes, error = RESUMED[name]
    words = dict(max_steps=2, save_steps=1, distillation={"weight": 0.7})
    make_student(tmp_path, make_bert(), make_bert(3), **words).train()
    teacher = None if seed is None else make_bert(seed)
    again = make_student(tmp_path / "again", make_bert(5), teacher, **{**words, **changes})
    if error is None:
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert ("Resuming with distillation=" in caplog.text) == ("distillation" in changes)
        return
    with pytest.raises(ValueError, match=error):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_teacher_that_a_training_did_not_have_is_an_error_too(tmp_path):
    make_student(tmp_path, make_bert(), max_steps=2, save_steps=1).train()
    make_bert(3).save_pretrained(tmp_path / "dense run")
    again = make_student(tmp_path / "again", make_bert(5), tmp_path / "dense run", max_steps=2, save_steps=1)
    with pytest.raises(ValueError, match=r"with no teacher, and .* the teacher .*dense run\. Leave teacher= out, or"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_teacher_is_known_by_its_weights_wherever_it_stands(tmp_path):
    for name in ("one", "other"):
        make_bert(3).save_pretrained(tmp_path / name)
    words = dict(max_steps=2, save_steps=1)
    make_student(tmp_path / "run", make_bert(), str(tmp_path / "one"), **words).train()
    again = make_student(tmp_path / "again", make_bert(5), str(tmp_path / "other"), **words)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    assert again.state.global_step == 2


@pytest.mark.parametrize("recipe", ["dense", "ste", "admm"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_teacher_without_weight_changes_nothing_bit_for_bit(recipe, times, tmp_path):
    ends = []
    for teacher in (None, make_bert(1)):
        settings = teacher and DistillationConfig(weight=0.0)
        words = dict(
            sparsity=recipe, gradient_accumulation_steps=times, max_steps=6, eval_strategy="steps", eval_steps=3
        )
        trainer = make_student(tmp_path / str(settings), make_bert(), teacher, settings, **words)
        trainer.train()
        ends.append((trainer, torch.rand(3).tolist()))
    (alone, chance), (taught, same_chance) = ends
    assert_equal_weights(alone.model, taught.model)
    assert chance == same_chance
    ours, theirs = (contents(Path(t.args.output_dir) / "checkpoint-6")["model.safetensors"] for t in (alone, taught))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_evaluation_gives_the_loss_of_the_task(smoothing, tmp_path):
    trainer = make_student(tmp_path, make_bert(), make_bert(1), label_smoothing_factor=smoothing, save_strategy="no")
    trainer.train()
    words = make_arguments(tmp_path, label_smoothing_factor=smoothing)
    plain = Trainer(trainer.model, words, eval_dataset=trainer.eval_dataset)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert torch.equal(
        torch.tensor(trainer.predict(trainer.eval_dataset).predictions),
        torch.tensor(plain.predict(trainer.eval_dataset).predictions),
    )
