"""Pruning with FSDP2: all processes together make of sharded weights what one process makes of whole ones."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import facts_of, run_sharded
from tests.support.processes.sharded_pruning import PRUNED, SETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program's trainings leave their checkpoints, with the facts of its processes."""
    return run_sharded("sharded_pruning", tmp_path_factory.mktemp("sharded_pruning"))


@pytest.fixture(scope="module")
def two(folder):
    """The facts of a group of two processes."""
    return facts_of(folder, 2, 2)


def assert_as_one_process(facts: list[dict]) -> None:
    """Raise unless all processes hold what one process makes of whole weights, bit for bit.

    Products of inputs are summed in fp32 for each batch, and these in fp64, which holds sums of so few exactly.
    """
    first = facts[0]
    for fact in facts:
        assert fact["ok"] and fact["weights"] == first["weights"] and fact["layers"] == first["layers"]
    assert first["masks"] == [] and first["apart"] == 0
    assert first["layers"] == first["expected"]


@pytest.mark.parametrize("case", PRUNED, ids="-".join)
def test_two_processes_prune_a_sharded_model_as_one_prunes_it_whole(case, two):
    assert_as_one_process([facts["/".join(("pruned", *case))] for facts in two])


def test_sharded_weights_are_pruned_by_magnitude_without_data(two):
    assert_as_one_process([facts["alone"] for facts in two])


def test_processes_with_few_rows_or_none_take_part(folder):
    facts = [each["uneven"] for each in facts_of(folder, 3, 3)]
    assert [fact["rows"] for fact in facts] == [1, 0, 0]
    assert_as_one_process(facts)


@pytest.mark.parametrize("case", SETS, ids="-".join)
def test_two_sets_of_two_processes_prune_as_one_process(case, folder):
    assert_as_one_process([facts["/".join(("sets", *case))] for facts in facts_of(folder, 4, 4)])


def test_only_computed_blocks_are_gathered_and_passes_end_as_fsdp_expects(two):
    """Four blocks, each process with two batches: a pass computes one block and the one before.

    Before them, one batch is traced through all blocks, and then once to each block.
    """
    for facts in two:
        assert facts["gathers"]["gathered"] == [2 + 2 * 2] * 3 + [2 + 2]
        assert facts["gathers"]["idle"] == ["IDLE"] * 5
        assert not facts["gathers"]["in_forward"] and facts["gathers"]["whole"] == []


@pytest.mark.parametrize("name, kind", [("warmup", "NxMTrainer"), ("settle", "NxMCallback")])
def test_sharded_trainings_that_prune_in_the_middle_give_the_bits_of_ddp(name, kind, two):
    for facts in two:
        facts = facts[f"trained/{name}/{kind}"]
        assert facts["fsdp"]["sharded"] == [True] * 12 and facts["ddp"]["sharded"] == [False] * 12
        assert facts["fsdp"]["steps"] == facts["ddp"]["steps"]
        assert facts["fsdp"]["ok"] and facts["ddp"]["ok"]
        for step in (4, 8):
            assert facts[f"resumed-{step}"]["steps"] == facts["fsdp"]["steps"][step:]
            assert facts[f"resumed-{step}"]["weights"] == facts["fsdp"]["weights"]


def test_the_default_recipe_trains_sharded_weights_as_whole_ones(two, folder):
    """The strength is measured, as a ratio of norms whose squares are added up in another order."""
    for facts in two:
        facts = facts["trained/default/NxMTrainer"]
        assert facts["fsdp"]["sharded"] == [True] * 12 and facts["fsdp"]["ok"]
        assert facts["fsdp"]["weights"] == two[0]["trained/default/NxMTrainer"]["fsdp"]["weights"]
    ddp, fsdp = (
        load_file(folder / "trained" / "default" / "NxMTrainer" / kind / "checkpoint-12" / "model.safetensors")
        for kind in ("ddp", "fsdp")
    )
    for name, weight in fsdp.items():
        assert torch.equal(weight != 0, ddp[name] != 0), name
        torch.testing.assert_close(weight, ddp[name], rtol=0, atol=1e-3)  # a tenth of a step of Adam


def test_if_one_process_cannot_read_rows_all_fall_back(two):
    for facts in two:
        facts = facts["fallen_back"]
        assert any("no such column" in text and 'using scores="fisher"' in text for text in facts["said"])
        assert facts["auto"]["weights"] == facts["fisher"]["weights"] and facts["auto"]["ok"]


@pytest.mark.parametrize(
    "name, useful",
    [
        ("method", "model.layers.0.mlp.down_proj: this layer is too wide"),
        ("reconstruct", 'reconstruct="block" needs whole ones; call prune before fully_shard.'),
        ("permute", "permute=True needs whole ones; call prune before fully_shard."),
        ("cache", "cache= needs whole ones; call prune before fully_shard."),
        ("nan", "model.layers.1.mlp.up_proj holds 1 NaN"),
    ],
)
def test_all_processes_raise_what_one_finds(name, useful, two):
    for facts in two:
        assert useful in facts["refused"][name]
