"""The loss scale: a loss that ignores `num_items_in_batch` counts once, however a batch is accumulated."""

import logging

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from tests.support.models import make_bert
from tests.support.training import (
    NO_DROPOUT,
    first_step,
    make_12_step_trainer,
)
from tests.support.versions import OLD, not_in_4


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("recipe", ["ste", "admm"])
def test_accumulated_gradients_are_those_of_the_larger_batch(recipe, times, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nxm_hf"):
        _, whole, loss = first_step(tmp_path, recipe, make_bert(**NO_DROPOUT))
        assert not [record for record in caplog.records if record.module == "loss_scale"]  # nothing to correct
        _, parts, mean = first_step(tmp_path, recipe, make_bert(**NO_DROPOUT), times)
    assert mean == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)
    found = [record for record in caplog.records if record.levelno == logging.INFO]
    if OLD:  # BERT does not accept num_items_in_batch there, so Trainer divides the loss
        assert not found
        return
    (record,) = found
    assert f"would be {times} times too large; corrected. Write fix_loss_scale=False to leave it." in record.message
    assert record.message.startswith("BertForSequenceClassification ignores num_items_in_batch")


@not_in_4("has a BERT whose loss needs no correction")
def test_the_correction_is_said_once_in_a_training_and_the_model_keeps_its_dropout(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "nxm_hf"):
        trainer = make_12_step_trainer(tmp_path, "ste", max_steps=6, gradient_accumulation_steps=2)
        trainer.train()
    assert sum("corrected" in record.message for record in caplog.records) == 1
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert all(0.4 < loss < 1.0 for loss in losses)  # about log 2, not twice that


@pytest.mark.parametrize("times", [2, 4])
def test_without_the_correction_the_loss_is_upstreams(times, tmp_path, caplog):
    """The forward pass of `admm` is dense, so its first step must be just the Trainer's."""
    with caplog.at_level(logging.INFO, "nxm_hf"):
        _, ours, loss = first_step(tmp_path, "admm", make_bert(**NO_DROPOUT), times, fix_loss_scale=False)
    _, plain, upstream = first_step(tmp_path, None, make_bert(**NO_DROPOUT), times, kind="Trainer")
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
        _, whole, loss = first_step(tmp_path, "ste", models[0], rows=texts)
        trainer, parts, mean = first_step(tmp_path, "ste", models[1], 4, rows=texts)
    assert trainer.model_accepts_loss_kwargs and not any("corrected" in record.message for record in caplog.records)
    assert mean == pytest.approx(loss, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)
