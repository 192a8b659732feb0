"""The file that says what a training was."""

import json
import logging

import pytest
import torch

from nxm_hf.storage.checkpoints import RUN_FILE
from nxm_hf.trainer.run_file import write_run_file
from tests.support.training import KINDS, make_12_step_trainer


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_needs_to_repeat_a_training_is_written_when_it_begins(kind, tmp_path):
    trainer = make_12_step_trainer(
        tmp_path,
        "fix",
        kind,
        save_strategy="no",
        max_steps=2,
        learning_rate=2e-3,
        weight_decay=0.05,
        seed=7,
        gradient_accumulation_steps=2,
        hub_token="secret",
    )
    trainer.model.config._name_or_path = str(tmp_path / "somewhere" / "bert")
    trainer.train()
    run = json.loads((tmp_path / RUN_FILE).read_text())
    assert run["optimizer"]["class"] == "AdamW" and run["optimizer"]["weight_decay"] == 0.05
    assert run["optimizer"]["betas"] == [0.9, 0.999]
    assert (run["training"]["learning_rate"], run["training"]["lr_scheduler_type"]) == (2e-3, "linear")
    assert run["seed"] == {"seed": 7, "data_seed": None} and run["training"]["steps"] == 2
    assert run["batch"] == {"rows of a step": 16, "per device": 8, "accumulation": 2, "processes": 1}
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert run["model"]["class"] == "BertForSequenceClassification" and run["model"]["parameters"] == parameters
    assert run["model"]["from"] == "bert" and run["data"] == {"rows": 64}
    assert run["sparsity"]["recipe"] == "fix" and run["sparsity"]["settle"] == 0.5
    assert run["versions"]["torch"] == torch.__version__ and run["versions"]["device"] == "cpu"
    assert not {"secret", str(tmp_path)} & {text for text in (tmp_path / RUN_FILE).read_text().split('"')}


def test_a_file_that_cannot_be_written_is_no_error_and_leaves_nothing_torn(tmp_path, caplog):
    (tmp_path / RUN_FILE).mkdir()
    with caplog.at_level(logging.WARNING, "nxm_hf"):
        write_run_file(tmp_path, {"format": 1})
    assert "could not be written" in caplog.text and (tmp_path / RUN_FILE).is_dir()
