"""A preview: before the training prunes with its data, evaluations and checkpoints show what that would make."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, default_data_collator

from nxm_hf import AdamW, NxMConfig, attach, prune, verify
from nxm_hf.engine.preview import put_back
from nxm_hf.engine.training_view import Difference, hold_difference
from nxm_hf.layers.plan import Plan
from nxm_hf.storage.state_file import read_state
from tests.support.models import assert_equal_weights, make_bert
from tests.support.training import KINDS, ROWS, SaveAt, StopAt, assert_same_end, batches_of, make_trainer

PREVIEWS = {
    "admm": NxMConfig("admm", settings={"preview": True, "scores": "sparsegpt"}, settle=0.25),
    "asp": NxMConfig("asp", settings={"preview": True, "scores": "adaprune"}, warmup=0.75),
}


@pytest.mark.parametrize("config", PREVIEWS.values(), ids=PREVIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_preview_shows_what_the_method_makes_of_the_weights_and_changes_no_training(kind, config, tmp_path):
    short = dict(gradient_accumulation_steps=1, eval_strategy="steps", eval_steps=4, eval_dataset=ROWS[:8])
    shown = make_trainer(tmp_path / "shown", config, kind, callbacks=[SaveAt(4, 8)], **short)
    shown.train()
    plain = make_trainer(tmp_path / "plain", config.replace(preview=False), kind, callbacks=[SaveAt(4, 8)], **short)
    plain.train()
    assert_equal_weights(shown.model, plain.model)
    expected = make_bert()
    _, tensors = read_state(tmp_path / "plain/checkpoint-4")
    trained = {name: tensor for name, tensor in tensors.items() if name.endswith("/weight")}
    expected.load_state_dict(load_file(tmp_path / "plain/checkpoint-4/model.safetensors"), strict=False)
    with torch.no_grad():
        for name, tensor in trained.items():
            expected.get_parameter(name.replace("/", ".")).copy_(tensor)
    prune(expected, config.pattern, config.calibrated_start.method, batches_of(ROWS))
    saved = load_file(tmp_path / "shown/checkpoint-4/model.safetensors")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, saved[name]), name
    losses = [record["eval_loss"] for record in shown.state.log_history if "eval_loss" in record]
    others = [record["eval_loss"] for record in plain.state.log_history if "eval_loss" in record]
    assert losses[0] != others[0] and losses[1] == others[1]
    evaluated = Trainer(expected, shown.args, eval_dataset=ROWS[:8]).evaluate()
    assert losses[0] == pytest.approx(evaluated["eval_loss"], rel=1e-6), "what was saved is what was evaluated"
    again = make_trainer(
        tmp_path / "again", config, kind, 5, [SaveAt(8)], resume_from=tmp_path / "shown/checkpoint-4", **short
    )
    again.train(resume_from_checkpoint=str(tmp_path / "shown/checkpoint-4"))
    assert_same_end(shown, again, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_ends_early_ends_with_its_preview(kind, tmp_path):
    trainer = make_trainer(tmp_path, PREVIEWS["admm"], kind, callbacks=[SaveAt(3), StopAt(3)])
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-3/model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainer.model.state_dict().items())
    assert verify(trainer.model, "2:4").ok


class SeeWeights(TrainerCallback):
    """Copies the weights that are evaluated."""

    def __init__(self):
        self.seen = {}

    def on_prediction_step(self, args, state, control, model=None, **kwargs):
        self.seen[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}


def masking_collator(rows):
    """Replace some tokens by chance, as collators for masked language models do."""
    batch = default_data_collator(rows)
    ids = batch["input_ids"]
    return {**batch, "input_ids": ids.masked_fill(torch.rand(ids.shape) < 0.3, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_was_evaluated_if_the_collator_draws_random_numbers(kind, tmp_path):
    model = make_bert()
    see = SeeWeights()
    trainer = make_trainer(
        tmp_path,
        PREVIEWS["admm"],
        kind,
        model=model,
        callbacks=[see],
        data_collator=masking_collator,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        gradient_accumulation_steps=1,
    )
    trainer.train()
    assert sorted(see.seen) == [2, 4, 6, 8]
    for step, weights in see.seen.items():
        saved = load_file(tmp_path / f"checkpoint-{step}/model.safetensors")
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items()), step


def test_a_preview_in_a_custom_loop_is_refused_because_it_has_no_rows():
    model = make_bert()
    with pytest.raises(ValueError, match=r"preview=True needs training data.*leave preview out"):
        attach(model, AdamW(model.parameters()), NxMConfig("admm", settings={"preview": True}), total_steps=8)


@pytest.mark.parametrize("changed", [False, True])
def test_a_weight_that_was_changed_in_place_is_named_when_it_is_put_back(changed, caplog):
    model = make_bert()
    target = Plan.of(model, NxMConfig("asp")).targets[3]
    weight, bias = target.layer.weight.detach(), target.layer.bias.detach().clone()
    before, held = weight.clone(), {target.name: weight.clone()}
    weight[:, ::2] = 0.0
    hold_difference(held, target.name, target.matrix())
    assert isinstance(held[target.name], Difference)
    if changed:
        weight[0, 1] = 7.0
    target.layer.bias.data.add_(1.0)
    put_back(target, held[target.name], bias)
    said = (
        f"Other code has changed {target.name}.weight in place inside `with engine.deployed():`. The training goes on "
    )
    assert [message.startswith(said) for message in caplog.messages] == [True] * changed
    assert torch.equal(target.layer.bias, bias) and torch.equal(weight[:, ::2], before[:, ::2])
    assert float(weight[0, 1]) == (7.0 if changed else float(before[0, 1]))
