"""The loss of distillation: its terms against formulas written out, and against a step of training."""

import copy
import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
)

from nxm_hf import DistillationConfig
from tests.support.distillation import (
    ALL,
    EAGER,
    first_distilled_step,
    make_labelled_texts,
    make_quiet_bert,
    make_quiet_gpt2,
)
from tests.support.models import make_rows


def kl_by_hand(ours, theirs, temperature):
    """Sum of p log(p/q), one row and one number at a time."""
    total = 0.0
    for s, t in zip(ours.tolist(), theirs.tolist(), strict=True):
        q, p = ([math.exp(x / temperature) for x in row] for row in (s, t))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / len(ours)


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
    model, teacher = make_quiet_bert(), make_quiet_bert(1)
    reference = copy.deepcopy(model)
    expected = by_hand(reference, teacher, rows, settings)
    expected.backward()
    gradients, loss = first_distilled_step(tmp_path, model, teacher, settings, times, rows=rows)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}], ids=str)
def test_a_head_that_honours_num_items_in_batch_learns_from_the_teacher_by_the_same_measure(changes, tmp_path):
    """Parts with different numbers of labels are what a mean of means gets wrong."""
    texts, settings = make_labelled_texts(), DistillationConfig(weight=0.6)
    models = [make_quiet_gpt2() for _ in range(3)]
    whole, loss = first_distilled_step(tmp_path, models[0], make_quiet_gpt2(1), settings, rows=texts, **changes)
    parts, mean = first_distilled_step(tmp_path, models[1], make_quiet_gpt2(1), settings, 4, rows=texts, **changes)
    task, _ = first_distilled_step(tmp_path, models[2], None, None, rows=texts, **changes)
    assert mean == pytest.approx(loss, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)
    assert any(not torch.allclose(gradient, task[name], rtol=0.1) for name, gradient in whole.items())


@pytest.mark.parametrize("sparsity", ["admm", "dense"])
def test_where_the_loss_scale_is_left_the_teachers_part_is_scaled_like_the_task(sparsity, tmp_path):
    """Upstream's loss of a head that ignores num_items_in_batch counts as often as there are parts."""
    words = dict(sparsity=sparsity, fix_loss_scale=False)
    whole, loss = first_distilled_step(tmp_path, make_quiet_bert(), make_quiet_bert(1), ALL, **words)
    parts, four = first_distilled_step(tmp_path, make_quiet_bert(), make_quiet_bert(1), ALL, times=4, **words)
    assert four == pytest.approx(4 * loss, rel=1e-4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], 4 * gradient, rtol=1e-3, atol=1e-5)


def test_a_copy_of_the_student_pulls_it_nowhere(tmp_path):
    settings = DistillationConfig(temperature=1.0, weight=1.0, hidden=1.0, attention=1.0)
    gradients, loss = first_distilled_step(tmp_path, make_quiet_bert(), make_quiet_bert(), settings)
    assert loss == pytest.approx(0, abs=1e-6)
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients.values())


@pytest.mark.parametrize(
    "change", [{"temperature": 1.0}, {"weight": 0.9}, {"hidden": 0.5}, {"attention": 0.5}], ids=str
)
def test_each_setting_changes_the_training(change, tmp_path):
    default, changed = (
        first_distilled_step(tmp_path, make_quiet_bert(), make_quiet_bert(1), words)[0] for words in (None, change)
    )
    assert any(not torch.equal(changed[name], default[name]) for name in default)


def test_the_answers_to_a_question_and_of_an_encoder_and_decoder_are_compared_too(tmp_path):
    def make_qa(seed):
        torch.manual_seed(seed)
        return AutoModelForQuestionAnswering.from_config(make_quiet_bert().config, **EAGER)

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
    for make, rows in ((make_qa, spans), (make_bart, make_labelled_texts())):
        same, zero = first_distilled_step(tmp_path, make(0), make(0), DistillationConfig(1.0, 1.0, 1.0, 1.0), rows=rows)
        other, loss = first_distilled_step(tmp_path, make(0), make(1), ALL, rows=rows)
        assert abs(zero) < 1e-6 < loss and all(gradient.abs().max() < 1e-5 for gradient in same.values())
        assert any(gradient.abs().max() > 1e-3 for gradient in other.values())


def test_bf16_autocast_asks_the_teacher_in_bf16_and_gives_about_the_same_loss(tmp_path):
    kinds, losses = [], []
    for on in (True, False):
        teacher = make_quiet_bert(1)
        teacher.bert.encoder.layer[0].output.dense.register_forward_hook(lambda m, a, out: kinds.append(out.dtype))
        losses.append(first_distilled_step(tmp_path, make_quiet_bert(), teacher, ALL, bf16=on)[1])
    assert kinds == [torch.bfloat16, torch.float32]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_models_that_return_nothing_to_compare_are_told_so():
    with pytest.raises(ValueError, match="The models return no logits to compare; leave this term out"):
        DistillationConfig().loss({"loss": 1}, {"loss": 1}, {}, False, None)
    with pytest.raises(ValueError, match=r"hidden_states of the teacher have the shapes \[\(1, 2, 4\)\]"):
        states = [{"hidden_states": (torch.zeros(1, 2, width),)} for width in (3, 4)]
        DistillationConfig(weight=0.0, hidden=1.0).loss(*states, {}, False, None)
