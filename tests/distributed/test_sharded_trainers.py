"""Trainers with FSDP2 in the ways that users set them up: what Trainer changes around a model changes no mask."""

import pytest
from safetensors.torch import load_file

import nxm_hf
from nxm_hf.storage.checkpoints import missing_parts
from tests.support.processes import facts_of, run_sharded
from tests.support.processes.sharded_trainers import MODES
from tests.support.training import assert_same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program's trainings leave their checkpoints, with the facts of its processes."""
    return run_sharded("sharded_trainers", tmp_path_factory.mktemp("sharded_trainers"))


@pytest.fixture(scope="module")
def two(folder):
    """The facts of the two processes."""
    return facts_of(folder, 2, 2)


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_a_trainer_ends_with_sharded_weights_that_hold_the_pattern(mode, two, folder):
    for facts in two:
        found = facts[f"modes/{mode}"]
        assert found["sharded"] == [True] * 8 and found["ok"]
    written = folder / "modes" / mode / "checkpoint-8"
    assert missing_parts(written) == [] and nxm_hf.verify(written).ok


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_a_trainer_prunes_with_training_data(mode, two):
    """Without a word of `scores="fisher"`, which it falls back to where the sharded model cannot be called."""
    for facts in two:
        assert not [text for text in facts[f"modes/{mode}"]["said"] if "could not prune" in text]


@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_run_a_trainer_trains_to_the_same_weights(mode, two):
    """To the same bits, but for lower precision, and for torch.compile, which computes in another order."""
    for facts in two:
        plain, found = facts["modes/plain"], facts[f"modes/{mode}"]
        rounded = {"bf16": 0.05, "compiled": 1e-4}.get(mode, 0)
        assert found["weights"] == plain["weights"] or rounded
        losses = [[record["loss"] for record in part["records"] if "loss" in record] for part in (plain, found)]
        assert losses[1] == pytest.approx(losses[0], rel=rounded)


@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_a_lora_on_a_sparse_base_is_trained_to_the_bits_of_ddp_and_resumed(kind, two, folder):
    """It ends with the best checkpoint, which is the first: later ones have a smaller loss, and the largest is best."""
    pytest.importorskip("peft", reason="needs PEFT")
    for facts in two:
        ddp, *others = facts[f"adapted/{kind}"].values()
        for found in others:
            assert found["sharded"] == [True] * len(found["steps"]) and found["ok"] and all(found["evaluated"])
            assert found["steps"] == ddp["steps"][-len(found["steps"]) :]
            assert found["weights"] == ddp["weights"]
        assert [len(found["steps"]) for found in others] == [4, 2, 2]
    for step in ("checkpoint-2", "checkpoint-4", "final"):
        files = [
            load_file(folder / "adapted" / kind / run / step / "adapter_model.safetensors") for run in ("ddp", "fsdp")
        ]
        assert_same(*files)


def test_the_callback_trains_and_resumes_in_the_trainer_of_trl(two, folder):
    pytest.importorskip("trl", reason="needs TRL")
    for facts in two:
        begun, resumed = facts["sft"]["begun"], facts["sft"]["resumed"]
        assert begun["sharded"] and begun["ok"] and resumed == begun
    for step in ("checkpoint-2", "checkpoint-4", "final"):
        assert nxm_hf.verify(folder / "sft" / "begun" / step).ok
