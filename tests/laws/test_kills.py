"""Kills: a killed save leaves a whole checkpoint, and a killed training resumes as the unbroken one."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nxm_hf import verify
from nxm_hf.storage.checkpoints import RUN_FILE, newest_complete
from nxm_hf.storage.manifest import LOCK_FILE, MANIFEST_FILE, changed_files, read_manifest
from nxm_hf.storage.state_file import fingerprint, read_state
from tests.support.processes import command, environment
from tests.support.processes.killed_training import ARGUMENTS
from tests.support.saving import step_of
from tests.support.training import KINDS, assert_same, contents, eventful, make_trainer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")]


def assert_is_whole(checkpoint) -> None:
    """Raise unless all parts of a checkpoint are there, and are of one step."""
    header, tensors = read_state(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    targets = {name: weights.pop(f"{name}.weight") for name in header["layers"]}
    assert fingerprint(targets.items()) == header["targets"] and fingerprint(weights.items()) == header["others"]
    assert {name.split("/")[0] for name in tensors} == set(targets)
    assert contents(checkpoint)["global_step"] == header["step"]
    assert changed_files(checkpoint) == {} and set(read_manifest(checkpoint)) > {"optimizer.pt", "rng_state.pth"}
    assert verify(checkpoint).ok


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What is left of trainings and saves that were killed, all in one process; see killed_training."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run(command("killed_training", "kill", folder, *KINDS), check=True, env=environment())
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_file_operation_of_a_save_leaves_a_whole_checkpoint(kind, killed, tmp_path):
    """With save_total_limit=1, where the older checkpoint goes as soon as the newer one is there.

    The manifest is written between, so it is among the points of both ways.
    """
    folder = killed / "save" / kind
    killed_at = json.loads((folder / "killed_at.json").read_text())
    for way in ("anew", "over"):
        names = [operation.rpartition("/")[2] for operation in killed_at[way]]
        assert (
            names.index("trainer_state.json") < names.index(f".{MANIFEST_FILE}.writing") < names.index("checkpoint-2")
        )
    assert len(killed_at["anew"]) >= 15 and len(killed_at["over"]) >= 15 and len(killed_at["torn"]) == 5
    reference = make_trainer(tmp_path / "reference", eventful("admm"), kind, **ARGUMENTS)
    reference.train()
    for way, points in killed_at.items():
        newest = []
        for number in range(len(points)):
            left = folder / f"{way}-{number}" / "out"
            checkpoint = Path(newest_complete(left))
            if way == "over" and number == 0:
                continue  # nothing had been written over the checkpoint that was there
            assert_is_whole(checkpoint)
            newest.append(step_of(checkpoint))
        assert newest == sorted(newest) and set(newest) <= {2, 4}
        for number in {newest.index(2), newest.index(4) if 4 in newest else 0, len(newest) - 1}:
            left = folder / f"{way}-{number + len(points) - len(newest)}" / "out"
            trainer = make_trainer(left, eventful("admm"), kind, begin=5, **ARGUMENTS)
            trainer.train(resume_from_checkpoint=newest_complete(left))
            assert_same(contents(tmp_path / "reference" / "checkpoint-8"), contents(left / "checkpoint-8"))
            assert {path.name for path in left.iterdir()} == {"checkpoint-8", RUN_FILE}
        assert (4 in newest) == (way != "torn")


def test_a_killed_training_resumes_in_a_fresh_process_with_other_seeds(killed, tmp_path):
    """Pitfall 3: SIGKILL in the middle of an accumulation, at a step that was not saved."""
    for kind in KINDS:
        left = {path.name for path in (killed / "train" / kind / "out").iterdir()}
        assert left == {"checkpoint-4", LOCK_FILE, RUN_FILE}  # the lock is taken over
    subprocess.run(command("killed_training", "resume", killed, *KINDS), check=True, env=environment())
    for kind in KINDS:
        make_trainer(tmp_path / kind, eventful("admm"), kind, **ARGUMENTS).train()
        ends = (contents(folder / "checkpoint-8") for folder in (tmp_path / kind, killed / "train" / kind / "out"))
        assert_same(*ends, kind)
