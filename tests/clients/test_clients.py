"""The script that runs transformers' own tests with our Trainer in the place of its own."""

import sys

import pytest

from tests.clients.__main__ import FILES, differences, main, run_tests

SUITE = """
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

class RegressionModel(nn.Module):
    def __init__(self, a=0.0):
        super().__init__()
        self.a, self.config = nn.Parameter(torch.tensor(a)), None

    def forward(self, input_x, labels=None, **kwargs):
        return nn.functional.mse_loss(input_x * self.a, labels), input_x * self.a

def trained(tmp_path):
    rows = [{"input_x": 1.0 * i, "labels": 2.0 * i} for i in range(4)]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no")
    trainer = Trainer(RegressionModel(), arguments, train_dataset=rows)
    trainer.train()
    return trainer

def test_moves(tmp_path):
    assert trained(tmp_path).model.a > 0

def test_holds_no_pattern(tmp_path):
    weights = [weight for weight in trained(tmp_path).model.parameters() if weight.dim() == 2]
    assert not any((weight.view(-1, 4).count_nonzero(1) == 2).all() for weight in weights)

def test_fails_without_us():
    assert Trainer is None, "not ours"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one file of tests."""
    file = tmp_path / FILES[0]
    file.parent.mkdir(parents=True)
    file.write_text(SUITE)
    return tmp_path


def test_a_difference_is_what_our_trainer_does_otherwise(checkout, capsys):
    assert main([str(checkout), "--trainers", "asp"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "plain: {'passed': 2, 'failed': 1}"
    assert lines[1] == "asp: {'passed': 1, 'failed': 2}"
    assert lines[2].startswith("  test_holds_no_pattern: passed -> failed  assert not")
    assert len(lines) == 3


def test_tests_that_run_on_one_side_alone_are_named():
    plain = {"a": ("passed", ""), "b": ("failed", "x"), "c": ("passed", "")}
    ours = {"a": ("passed", ""), "b": ("failed", "y"), "d": ("failed", "first\nsecond")}
    assert differences(plain, ours) == {"c": "passed -> missing", "d": "missing -> failed  first"}


def test_a_checkout_without_tests_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="pytest ran no test in"):
        run_tests(tmp_path, "plain")
    assert sys.modules["transformers"].Trainer.__name__ == "Trainer"
