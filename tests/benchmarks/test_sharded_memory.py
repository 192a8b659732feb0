"""The table of peak memory of sharded models: what it measures in a group of one process."""

import argparse

import pytest
import torch

from benchmarks.sharded_memory import ROWS, TRAINED, make_model, make_rows, planned, prune_alone, prune_in_training
from nxm_hf import verify
from tests.support.group_of_one import group_of_one

GIVEN = argparse.Namespace(processes=1, blocks=2, width=64, vocabulary=64, rows=4, tokens=8)


@pytest.mark.parametrize("row", ["wanda", TRAINED])
def test_a_sharded_model_is_pruned_while_its_peak_is_measured(row):
    model, rows = make_model(GIVEN), make_rows(GIVEN)
    with group_of_one():
        for module in (*model.model.layers, model):
            torch.distributed.fsdp.fully_shard(module)
        most = prune_in_training(model, rows) if row == TRAINED else prune_alone(row, model, rows)
        assert most >= 0 and verify(model, "2:4").ok


def test_a_training_is_planned_with_gradients_moments_and_state_and_pruning_without():
    weights = sum(parameter.nbytes for parameter in make_model(GIVEN).parameters())
    assert [planned(row, GIVEN) for row in ROWS[:-1]] == [weights] * 3
    assert 4 * weights < planned(TRAINED, GIVEN) < 5 * weights  # with R of the blocks
    two = argparse.Namespace(**{**vars(GIVEN), "processes": 2})
    assert planned(TRAINED, two) == planned(TRAINED, GIVEN) / 2
