"""DistillationConfig: a teacher's answers beside the task, with every recipe, and the teachers that are refused."""

import copy
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

from nxm_hf import DistillationConfig, NxMTrainer, recipes, verify
from nxm_hf.distillation.teacher import Teacher
from tests.support.models import assert_equal_weights, make_arguments, make_bert, make_rows
from tests.support.training import assert_same_end, contents, eventful

NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
EAGER = dict(attn_implementation="eager")
ALL = DistillationConfig(temperature=3.0, weight=0.3, hidden=0.2, attention=0.1)


def quiet_bert(seed=0, **changes):
    return make_bert(seed, **{**NO_DROPOUT, **EAGER, **changes})


def make_gpt2(seed=0):
    torch.manual_seed(seed)
    shape = dict(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=1)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), **EAGER
    )


def make_texts():
    """Rows of a language model, of which each has another number of labels."""
    rows = make_rows(16)
    for number, row in enumerate(rows):
        row["labels"] = row["input_ids"].masked_fill(torch.arange(8) < number % 6, -100)
    return rows


def make_trainer(folder, model, teacher=None, distillation=None, rows=None, sparsity="admm", callbacks=(), **changes):
    rows = make_rows(32) if rows is None else rows
    words = {name: changes.pop(name) for name in ("fix_loss_scale", "processing_class") if name in changes}
    return NxMTrainer(
        model=model, args=make_arguments(folder, **changes), train_dataset=rows, eval_dataset=rows[:8],
        sparsity=sparsity, teacher=teacher, distillation=distillation, callbacks=list(callbacks), **words,
    )  # fmt: skip


class Watch(TrainerCallback):
    """Keeps the gradients of each step, as they stand before the optimizer steps."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def first_step(folder, model, teacher, distillation, rows, times=1, **changes):
    """The gradients and the logged loss of one step over all rows, in `times` parts. ADMM's first step is dense."""
    words = dict(max_steps=1, logging_steps=1, save_strategy="no", max_grad_norm=0.0)
    words |= dict(per_device_train_batch_size=len(rows) // times, gradient_accumulation_steps=times)
    watch = Watch()
    trainer = make_trainer(folder, model, teacher, distillation, rows, callbacks=[watch], **{**words, **changes})
    trainer.train()
    return watch.gradients[0], trainer.state.log_history[0]["loss"]


def batch_of(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def kl_by_hand(ours, theirs, temperature):
    """Sum of p log(p/q), one row and one number at a time."""
    total = 0.0
    for s, t in zip(ours.tolist(), theirs.tolist(), strict=True):
        q, p = ([math.exp(x / temperature) for x in row] for row in (s, t))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / len(ours)


# -- the loss ----------------------------------------------------------------------------------------------------------


def part(distillation, ours, theirs, labels, causal=False, problem_type=None, name="logits"):
    answers = [{name: torch.as_tensor(x)} for x in (ours, theirs)]
    return distillation.loss(*answers, {"labels": torch.as_tensor(labels)}, causal, problem_type)


def test_the_worked_vector_of_the_specification():
    distillation = DistillationConfig(temperature=2.0, weight=0.9)
    loss = part(distillation, [[2.0, 0.5, -1.0]], [[1.5, 1.0, -0.5]], [0])
    assert float(loss) == pytest.approx(0.9 * 4 * 0.031135, abs=2e-5)
    assert 0.1 * 0.241311 + float(loss) == pytest.approx(0.136219, abs=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_the_logits_term_is_the_divergence_written_out(temperature):
    ours, theirs = torch.randn(5, 4), torch.randn(5, 4)
    loss = part(DistillationConfig(temperature, weight=1.0), ours, theirs, [0, 1, 2, 3, 0])
    assert float(loss) == pytest.approx(temperature**2 * kl_by_hand(ours, theirs, temperature), rel=1e-4)


def test_only_positions_with_a_label_count_and_those_of_a_language_model_are_one_before_it():
    ours, theirs = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.tensor([[3, -100, 2, 2, -100], [-100, 1, 1, -100, 0]])
    one = DistillationConfig(weight=1.0, temperature=1.0)
    there = [(0, 0), (0, 2), (0, 3), (1, 1), (1, 2), (1, 4)]
    for causal, places in ((False, there), (True, [(row, at - 1) for row, at in there if at > 0])):
        rows = [torch.stack([x[place] for place in places]) for x in (ours, theirs)]
        loss = part(one, ours, theirs, labels, causal)
        assert float(loss) == pytest.approx(kl_by_hand(*rows, 1.0), rel=1e-4)
    assert part(one, ours, theirs, torch.full_like(labels, -100), True) == 0  # not a NaN


def test_a_regression_head_is_compared_by_its_squared_error():
    ours, theirs = torch.randn(4, 1), torch.randn(4, 1)
    expected = sum((a - b) ** 2 for a, b in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True)) / 4
    assert float(part(DistillationConfig(weight=0.5), ours, theirs, torch.randn(4))) == pytest.approx(
        expected / 2, rel=1e-5
    )
    several = part(
        DistillationConfig(weight=1.0), ours.repeat(1, 3), theirs.repeat(1, 3), torch.randn(4, 3), False, "regression"
    )
    assert float(several) == pytest.approx(expected, rel=1e-5)


def test_labels_of_which_several_hold_are_each_compared_as_a_yes_or_no():
    ours, theirs = torch.randn(3, 4), torch.randn(3, 4)
    loss = part(DistillationConfig(2.0, 1.0), ours, theirs, torch.ones(3, 4), False, "multi_label_classification")
    pairs = [torch.stack([z.flatten(), torch.zeros(12)], 1) for z in (ours, theirs)]
    assert float(loss) == pytest.approx(4 * kl_by_hand(*pairs, 2.0), rel=1e-4)


def by_hand(model, teacher, rows, settings):
    """The whole loss of a BERT classifier, row by row, from what the two models say of each row alone."""
    total = 0.0
    for row in rows:
        batch = {name: value[None] for name, value in row.items()}
        flags = dict(output_hidden_states=True, output_attentions=True)
        ours = model(**batch, **flags)
        with torch.no_grad():
            theirs = teacher(**batch, **flags)
        p, q = ((x.logits / settings.temperature).softmax(-1) for x in (theirs, ours))
        soft = settings.temperature**2 * (p * (p / q).log()).sum()
        loss = (1 - settings.weight) * ours.loss + settings.weight * soft
        kept = row["attention_mask"].bool()
        hidden = [(a[0, kept] - b[0, kept]).pow(2).mean() for a, b in zip(ours[2], theirs[2], strict=True)]
        maps = [(a[0, :, kept] - b[0, :, kept]).pow(2).sum(-1).mean() for a, b in zip(ours[3], theirs[3], strict=True)]
        loss = loss + settings.hidden * sum(hidden) / len(hidden) + settings.attention * sum(maps) / len(maps)
        total = total + loss / len(rows)
    return total


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("settings", [DistillationConfig(), ALL], ids=str)
def test_a_training_step_has_the_gradients_of_the_loss_by_hand(settings, times, tmp_path):
    """With rows of several lengths, and however a batch is cut into parts."""
    rows = make_rows(8)
    for number, row in enumerate(rows):
        row["attention_mask"] = (torch.arange(8) < 3 + number % 6).long()
    model, teacher = quiet_bert(), quiet_bert(1)
    reference = copy.deepcopy(model)
    expected = by_hand(reference, teacher, rows, settings)
    expected.backward()
    gradients, loss = first_step(tmp_path, model, teacher, settings, rows, times)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}], ids=str)
def test_a_head_that_honours_num_items_in_batch_learns_from_the_teacher_by_the_same_measure(changes, tmp_path):
    """Parts with different numbers of labels are what a mean of means gets wrong."""
    texts, settings = make_texts()[:8], DistillationConfig(weight=0.6)
    models = [make_gpt2() for _ in range(3)]
    whole, loss = first_step(tmp_path, models[0], make_gpt2(1), settings, texts, 1, **changes)
    parts, mean = first_step(tmp_path, models[1], make_gpt2(1), settings, texts, 4, **changes)
    task, _ = first_step(tmp_path, models[2], None, None, texts, 1, **changes)
    assert mean == pytest.approx(loss, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)
    assert any(not torch.allclose(gradient, task[name], rtol=0.1) for name, gradient in whole.items())


@pytest.mark.parametrize("sparsity", ["admm", "dense"])
def test_where_the_loss_scale_is_left_the_teachers_part_is_scaled_like_the_task(sparsity, tmp_path):
    """Upstream's loss of a head that ignores num_items_in_batch counts as often as there are parts."""
    words = dict(sparsity=sparsity, rows=make_rows(8), fix_loss_scale=False)
    whole, loss = first_step(tmp_path, quiet_bert(), quiet_bert(1), ALL, times=1, **words)
    parts, four = first_step(tmp_path, quiet_bert(), quiet_bert(1), ALL, times=4, **words)
    assert four == pytest.approx(4 * loss, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], 4 * gradient, rtol=1e-3, atol=1e-5)


def test_a_copy_of_the_student_pulls_it_nowhere(tmp_path):
    settings = DistillationConfig(temperature=1.0, weight=1.0, hidden=1.0, attention=1.0)
    gradients, loss = first_step(tmp_path, quiet_bert(), quiet_bert(), settings, make_rows(8))
    assert loss == pytest.approx(0, abs=1e-6)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.values())


@pytest.mark.parametrize(
    "change", [{"temperature": 1.0}, {"weight": 0.9}, {"hidden": 0.5}, {"attention": 0.5}], ids=str
)
def test_each_setting_changes_the_training(change, tmp_path):
    default, changed = (
        first_step(tmp_path, quiet_bert(), quiet_bert(1), words, make_rows(8))[0] for words in (None, change)
    )
    assert any(not torch.equal(changed[name], default[name]) for name in default)


def test_the_answers_to_a_question_and_of_an_encoder_and_decoder_are_compared_too(tmp_path):
    def make_qa(seed):
        torch.manual_seed(seed)
        return AutoModelForQuestionAnswering.from_config(quiet_bert().config, **EAGER)

    def make_bart(seed):
        torch.manual_seed(seed)
        shape = dict(d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, vocab_size=50)
        shape |= dict(decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32)
        shape |= dict(dropout=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
        return AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("bart", **shape), **EAGER)

    spans = [
        {"input_ids": row["input_ids"], "start_positions": i % 8, "end_positions": 7}
        for i, row in enumerate(make_rows(8))
    ]
    for make, rows in ((make_qa, spans), (make_bart, make_texts()[:8])):
        same, zero = first_step(tmp_path, make(0), make(0), DistillationConfig(1.0, 1.0, 1.0, 1.0), rows)
        other, loss = first_step(tmp_path, make(0), make(1), ALL, rows)
        assert abs(zero) < 1e-6 < loss and all(gradient.abs().max() < 1e-5 for gradient in same.values())
        assert any(gradient.abs().max() > 1e-3 for gradient in other.values())


# -- in a training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_learns_from_a_teacher_and_resumes_bit_for_bit(recipe, tmp_path):
    words = dict(
        gradient_accumulation_steps=2, per_device_train_batch_size=4, max_steps=8, save_steps=3, logging_steps=2
    )
    words.update(bf16=True, distillation={"weight": 0.7, "hidden": 0.1}, sparsity=eventful(recipe))
    whole = make_trainer(tmp_path / "whole", make_bert(), make_bert(3), **words)
    whole.train()
    assert whole.model.config.hidden_dropout_prob > 0  # which a resumed training must draw alike
    again = make_trainer(tmp_path / "again", make_bert(5), make_bert(3), **{**words, "save_steps": 8})
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_end(whole, again, 3)
    assert recipe == "dense" or verify(whole.model).ok
    alone = make_trainer(tmp_path / "alone", make_bert(), **{**words, "distillation": None, "save_steps": 8})
    alone.train()
    different = [
        name for name, x in alone.model.state_dict().items() if not torch.equal(x, whole.model.state_dict()[name])
    ]
    assert len(different) > 20


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
    make_trainer(tmp_path, make_bert(), make_bert(3), **words).train()
    teacher = None if seed is None else make_bert(seed)
    again = make_trainer(tmp_path / "again", make_bert(5), teacher, **{**words, **changes})
    if error is None:
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert ("Resuming with distillation=" in caplog.text) == ("distillation" in changes)
        return
    with pytest.raises(ValueError, match=error):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_teacher_that_a_training_did_not_have_is_an_error_too(tmp_path):
    make_trainer(tmp_path, make_bert(), max_steps=2, save_steps=1).train()
    make_bert(3).save_pretrained(tmp_path / "dense run")
    again = make_trainer(tmp_path / "again", make_bert(5), tmp_path / "dense run", max_steps=2, save_steps=1)
    with pytest.raises(ValueError, match=r"with no teacher, and .* the teacher .*dense run\. Leave teacher= out, or"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_teacher_is_known_by_its_weights_wherever_it_stands(tmp_path):
    for name in ("one", "other"):
        make_bert(3).save_pretrained(tmp_path / name)
    words = dict(max_steps=2, save_steps=1)
    make_trainer(tmp_path / "run", make_bert(), str(tmp_path / "one"), **words).train()
    again = make_trainer(tmp_path / "again", make_bert(5), str(tmp_path / "other"), **words)
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
        trainer = make_trainer(tmp_path / str(settings), make_bert(), teacher, settings, **words)
        trainer.train()
        ends.append((trainer, torch.rand(3).tolist()))
    (alone, chance), (taught, same_chance) = ends
    assert_equal_weights(alone.model, taught.model)
    assert chance == same_chance
    ours, theirs = (contents(Path(t.args.output_dir) / "checkpoint-6")["model.safetensors"] for t in (alone, taught))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_teacher_draws_no_random_numbers(tmp_path):
    """Its dropout would change that of the student, and with it a run that is compared with one without a teacher."""
    drawn = []
    for teacher in (None, make_bert(1)):
        make_trainer(tmp_path, make_bert(), teacher, save_strategy="no").train()
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1]


def test_a_teacher_is_asked_in_eval_mode_and_is_neither_trained_nor_saved(tmp_path):
    teacher = make_bert(1).train()
    before = copy.deepcopy(teacher)
    modes = []
    teacher.register_forward_pre_hook(lambda module, args: modes.append((module.training, torch.is_grad_enabled())))
    trainer = make_trainer(tmp_path, make_bert(), teacher, max_steps=4, save_steps=4)
    assert not teacher.training
    teacher.train()  # by whoever else holds it
    trainer.train()
    assert modes == [(False, False)] * 4 and not any(module.training for module in teacher.modules())
    assert_equal_weights(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}
    plain = make_trainer(tmp_path / "plain", make_bert(), max_steps=4, save_steps=4)
    plain.train()
    shapes = [
        {name: x.shape for name, x in contents(folder / "checkpoint-4")["model.safetensors"].items()}
        for folder in (tmp_path, tmp_path / "plain")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_evaluation_gives_the_loss_of_the_task(smoothing, tmp_path):
    trainer = make_trainer(tmp_path, make_bert(), make_bert(1), label_smoothing_factor=smoothing, save_strategy="no")
    trainer.train()
    words = make_arguments(tmp_path, label_smoothing_factor=smoothing)
    plain = Trainer(trainer.model, words, eval_dataset=trainer.eval_dataset)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    assert torch.equal(
        torch.tensor(trainer.predict(trainer.eval_dataset).predictions),
        torch.tensor(plain.predict(trainer.eval_dataset).predictions),
    )


def test_bf16_autocast_asks_the_teacher_in_bf16_and_gives_about_the_same_loss(tmp_path):
    kinds, losses = [], []
    for on in (True, False):
        teacher = quiet_bert(1)
        teacher.bert.encoder.layer[0].output.dense.register_forward_hook(lambda m, a, out: kinds.append(out.dtype))
        losses.append(first_step(tmp_path, quiet_bert(), teacher, ALL, make_rows(8), bf16=on)[1])
    assert kinds == [torch.bfloat16, torch.float32]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


# -- a teacher from a directory ----------------------------------------------------------------------------------------


def make_tokenizer(*words):
    table = {word: number for number, word in enumerate(["[UNK]", *words])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(table, "[UNK]")), unk_token="[UNK]", pad_token="[UNK]"
    )


def test_a_student_learns_from_the_directory_of_its_own_dense_run(tmp_path):
    tokenizer = make_tokenizer("a", "b")
    dense = make_trainer(
        tmp_path / "run", quiet_bert(), sparsity="dense", processing_class=tokenizer, save_strategy="no"
    )
    dense.train()
    dense.save_model(tmp_path / "dense")
    words = dict(processing_class=tokenizer, max_steps=1, logging_steps=1, save_strategy="no")
    trainer = make_trainer(tmp_path, quiet_bert(), tmp_path / "dense", **words)
    assert_equal_weights(trainer._teacher.model, dense.model)
    assert trainer._teacher.model.config._attn_implementation == "eager"
    trainer.train()
    given = make_trainer(tmp_path, quiet_bert(), dense.model, **words)
    given.train()
    assert_equal_weights(given.model, trainer.model)
    assert given.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]


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
        make_trainer(tmp_path, make_bert(), str(tmp_path / "teacher"))
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
    make_trainer(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("a", "b"))  # none beside
    make_tokenizer("b", "a").save_pretrained(tmp_path / "teacher")
    make_trainer(tmp_path, make_bert(), tmp_path / "teacher")
    make_trainer(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("b", "a"))
    with pytest.raises(ValueError, match="another vocabulary than processing_class"):
        make_trainer(tmp_path, make_bert(), tmp_path / "teacher", processing_class=make_tokenizer("a", "b"))


# -- what is refused ---------------------------------------------------------------------------------------------------


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
        make_trainer(tmp_path, make_bert(**student), make_bert(**teacher), distillation)
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


def test_a_smaller_student_learns_from_the_logits_of_a_larger_teacher(tmp_path):
    _, loss = first_step(tmp_path, make_bert(), make_bert(num_hidden_layers=3, hidden_size=64), None, make_rows(8))
    assert math.isfinite(loss)


def test_a_student_does_not_teach_itself(tmp_path):
    model = make_bert()
    lender = make_bert(1)
    lender.bert.embeddings.word_embeddings.weight = model.bert.embeddings.word_embeddings.weight
    for teacher in (model, lender):
        with pytest.raises(ValueError, match="The teacher is the student, or has weights of it; give a model"):
            make_trainer(tmp_path, model, teacher)


def test_words_about_distillation_are_checked_when_the_trainer_is_made(tmp_path):
    with pytest.raises(ValueError, match="distillation= needs a teacher; write teacher="):
        make_trainer(tmp_path, make_bert(), distillation=DistillationConfig())
    with pytest.raises(ValueError, match="no 'heat'; its keys are temperature, weight, hidden, attention"):
        make_trainer(tmp_path, make_bert(), make_bert(1), {"heat": 2.0})
    with pytest.raises(TypeError, match=r'a DistillationConfig, or a dict such as \{"weight": 0.5\}; got 0.5'):
        make_trainer(tmp_path, make_bert(), make_bert(1), 0.5)
    with pytest.raises(TypeError, match="teacher must be a model, or a directory that one was saved in; got 3"):
        make_trainer(tmp_path, make_bert(), 3)
    for words, useful in (
        ({"temperature": 0}, r"temperature must be a number above 0; got 0. Write temperature=2.0"),
        ({"weight": 1.5}, "weight must be a number from 0 to 1; got 1.5"),
        ({"hidden": -1.0}, "hidden must be a number 0 or above; got -1.0"),
        ({"attention": math.nan}, "attention must be a number 0 or above; got nan"),
        ({"weight": True}, "weight must be a number from 0 to 1; got True"),
    ):
        with pytest.raises(ValueError, match=useful):
            make_trainer(tmp_path, make_bert(), make_bert(1), words)


def test_one_process_with_several_gpus_is_refused(arguments):
    args = arguments()
    args._n_gpu = 2
    with pytest.raises(ValueError, match="one process per GPU"):
        Teacher(make_bert(1), make_bert(), DistillationConfig(), None, args)


def test_a_directory_needs_a_student_that_can_be_loaded_like_it(arguments, tmp_path):
    make_bert().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"Sequential has no from_pretrained.*give teacher= a model object"):
        Teacher(tmp_path / "teacher", torch.nn.Sequential(), DistillationConfig(), None, arguments())


def test_models_that_return_nothing_to_compare_are_told_so():
    with pytest.raises(ValueError, match="The models return no logits to compare; leave this term out"):
        DistillationConfig().loss({"loss": 1}, {"loss": 1}, {}, False, None)
    with pytest.raises(ValueError, match=r"hidden_states of the teacher have the shapes \[\(1, 2, 4\)\]"):
        states = [{"hidden_states": (torch.zeros(1, 2, width),)} for width in (3, 4)]
        DistillationConfig(weight=0.0, hidden=1.0).loss(*states, {}, False, None)
