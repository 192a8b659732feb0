"""Teachers: loaded from a directory, asked without being changed, and refused where they cannot teach."""

import copy
import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    PreTrainedTokenizerFast,
)

from nxm_hf import DistillationConfig
from nxm_hf.distillation.teacher import Teacher
from tests.support.distillation import (
    EAGER,
    first_distilled_step,
    make_quiet_bert,
    make_student,
)
from tests.support.models import assert_equal_weights, make_bert
from tests.support.training import contents


def make_tokenizer(*words):
    table = {word: number for number, word in enumerate(["[UNK]", *words])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(table, "[UNK]")), unk_token="[UNK]", pad_token="[UNK]"
    )


def test_a_teacher_is_asked_in_eval_mode_and_is_neither_trained_nor_saved(tmp_path):
    teacher = make_bert(1).train()
    before = copy.deepcopy(teacher)
    modes = []
    teacher.register_forward_pre_hook(lambda module, args: modes.append((module.training, torch.is_grad_enabled())))
    trainer = make_student(tmp_path, make_bert(), teacher, max_steps=4, save_steps=4)
    assert not teacher.training
    teacher.train()  # by whoever else holds it
    trainer.train()
    assert modes == [(False, False)] * 4 and not any(module.training for module in teacher.modules())
    assert_equal_weights(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}
    plain = make_student(tmp_path / "plain", make_bert(), max_steps=4, save_steps=4)
    plain.train()
    shapes = [
        {name: x.shape for name, x in contents(folder / "checkpoint-4")["model.safetensors"].items()}
        for folder in (tmp_path, tmp_path / "plain")
    ]
    assert shapes[0] == shapes[1]


def test_a_teacher_draws_no_random_numbers(tmp_path):
    """Its dropout would change that of the student, and with it a run that is compared with one without a teacher."""
    drawn = []
    for teacher in (None, make_bert(1)):
        make_student(tmp_path, make_bert(), teacher, save_strategy="no").train()
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1]


def test_a_student_learns_from_the_directory_of_its_own_dense_run(tmp_path):
    tokenizer = make_tokenizer("a", "b")
    dense = make_student(
        tmp_path / "run", make_quiet_bert(), sparsity="dense", processing_class=tokenizer, save_strategy="no"
    )
    dense.train()
    dense.save_model(tmp_path / "dense")
    words = dict(processing_class=tokenizer, max_steps=1, logging_steps=1, save_strategy="no")
    trainer = make_student(tmp_path, make_quiet_bert(), tmp_path / "dense", **words)
    assert_equal_weights(trainer._teacher.model, dense.model)
    assert trainer._teacher.model.config._attn_implementation == "eager"
    trainer.train()
    given = make_student(tmp_path, make_quiet_bert(), dense.model, **words)
    given.train()
    assert_equal_weights(given.model, trainer.model)
    assert given.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]


def test_a_smaller_student_learns_from_the_logits_of_a_larger_teacher(tmp_path):
    _, loss = first_distilled_step(tmp_path, make_bert(), make_bert(num_hidden_layers=3, hidden_size=64), None)
    assert math.isfinite(loss)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "useful"),
    [
        (lambda: make_bert().bert, r"lacks 2 weights of a BertForSequenceClassification.*: classifier\.bias, classif"),
        (lambda: make_bert(num_labels=3), "The teacher has 3 labels and the student 2; take"),
        (lambda: make_bert(vocab_size=60), "The teacher has 60 words in its vocabulary and the student 50; take"),
    ],
)
def test_a_directory_of_another_model_is_refused(teacher, useful, tmp_path):
    teacher().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=useful) as error:
        make_student(tmp_path, make_bert(), str(tmp_path / "teacher"))
    assert str(error.value).count("; ") == 1 and str(error.value).endswith(".")


def test_weights_of_another_shape_are_refused_and_no_random_number_is_drawn(arguments, tmp_path):
    teacher = make_bert()
    teacher.config.num_labels = 5  # what is in the file does not fit what is beside it
    teacher.save_pretrained(tmp_path / "teacher")
    student, args = make_bert(), arguments()
    chance = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"lacks 2 weights.*classifier"):
        Teacher(tmp_path / "teacher", student, DistillationConfig(), None, args)
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_teacher_that_reads_other_words_is_refused(tmp_path):
    make_bert().save_pretrained(tmp_path / "teacher")
    make_student(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("a", "b"))  # none beside
    make_tokenizer("b", "a").save_pretrained(tmp_path / "teacher")
    make_student(tmp_path, make_bert(), tmp_path / "teacher")
    make_student(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("b", "a"))
    with pytest.raises(ValueError, match="another vocabulary than processing_class"):
        make_student(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("a", "b"))


@pytest.mark.parametrize(
    ("student", "teacher", "distillation", "useful"),
    [
        ({}, {"num_labels": 3}, {}, "The teacher has 3 labels and the student 2"),
        ({}, {"vocab_size": 60}, {}, "The teacher has 60 words in its vocabulary"),
        ({}, {"num_hidden_layers": 3}, {"hidden": 1.0}, "teacher has num_hidden_layers=3.*write hidden=0.0"),
        ({}, {"hidden_size": 64}, {"hidden": 1.0}, "hidden_size=64 and the student 32; write hidden=0.0"),
        (EAGER, {**EAGER, "num_attention_heads": 4}, {"attention": 1.0}, "num_attention_heads=4.*attention=0.0"),
        (EAGER, {}, {"attention": 1.0}, "the teacher does not.*'sdpa'.*attn_implementation=\"eager\""),
        ({}, EAGER, {"attention": 1.0}, "the student does not.*'sdpa'.*attn_implementation=\"eager\""),
        (
            {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}},
            {"id2label": {0: "No", 1: "Yes"}, "label2id": {"No": 0, "Yes": 1}},
            {},
            r"labels are \['no', 'yes'\] and the student's \['yes', 'no'\]; load the student with",
        ),
    ],
)
def test_a_teacher_that_cannot_teach_this_student_is_refused_in_one_sentence(
    student, teacher, distillation, useful, tmp_path
):
    with pytest.raises(ValueError, match=useful) as error:
        make_student(tmp_path, make_bert(**student), make_bert(**teacher), distillation)
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


def test_a_student_does_not_teach_itself(tmp_path):
    model = make_bert()
    lender = make_bert(1)
    lender.bert.embeddings.word_embeddings.weight = model.bert.embeddings.word_embeddings.weight
    for teacher in (model, lender):
        with pytest.raises(ValueError, match="The teacher is the student, or shares weights with it; give"):
            make_student(tmp_path, model, teacher)


def test_words_about_distillation_are_checked_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ValueError, match="distillation= needs a teacher; write teacher="):
        make_student(tmp_path, make_bert(), distillation=DistillationConfig())
    with pytest.raises(ValueError, match="no 'heat'; its keys are temperature, weight, hidden, attention"):
        make_student(tmp_path, make_bert(), make_bert(1), {"heat": 2.0})
    with pytest.raises(TypeError, match=r'a DistillationConfig, or a dict such as \{"weight": 0.5\}; got 0.5'):
        make_student(tmp_path, make_bert(), make_bert(1), 0.5)
    with pytest.raises(TypeError, match="teacher must be a model, or a directory that one was saved in; got 3"):
        make_student(tmp_path, make_bert(), 3)
    for words, useful in (
        ({"temperature": 0}, r"temperature must be a number above 0; got 0. Write temperature=2.0"),
        ({"weight": 1.5}, "weight must be a number from 0 to 1; got 1.5"),
        ({"hidden": -1.0}, "hidden must be a number 0 or above; got -1.0"),
        ({"attention": math.nan}, "attention must be a number 0 or above; got nan"),
        ({"weight": True}, "weight must be a number from 0 to 1; got True"),
    ):
        with pytest.raises(ValueError, match=useful):
            make_student(tmp_path, make_bert(), make_bert(1), words)


def test_one_process_with_several_gpus_is_refused(arguments):
    args = arguments()
    args._n_gpu = 2
    with pytest.raises(ValueError, match="one process per GPU"):
        Teacher(make_bert(1), make_bert(), DistillationConfig(), None, args)


def test_a_directory_needs_a_student_that_can_be_loaded_like_it(arguments, tmp_path):
    make_bert().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"Sequential has no from_pretrained.*give teacher= a model object"):
        Teacher(tmp_path / "teacher", torch.nn.Sequential(), DistillationConfig(), None, arguments())
