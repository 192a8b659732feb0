"""Processes of DDP that die or stop: the others end in time, and what is left can be resumed, also by fewer."""

import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import nxm_hf
from nxm_hf.storage.checkpoints import missing_parts, newest_complete
from nxm_hf.storage.manifest import changed_files
from tests.support.processes import OF_GLOO, command, read_facts, run_group
from tests.support.processes.killed_ranks import DEATHS, LIMIT, PATIENCE

pytestmark = pytest.mark.slow
SECONDS = 580  # until the program counts as hung


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program's trainings leave their checkpoints, with the facts of its processes."""
    folder = tmp_path_factory.mktemp("killed_ranks")
    code, output = run_group(command("killed_ranks", folder), SECONDS, OMP_NUM_THREADS="1")
    assert code == 0, output
    return folder


@pytest.mark.parametrize("death", DEATHS)
def test_the_others_end_with_an_error_and_within_the_limit_of_a_communication(death, folder):
    victim = DEATHS[death][0]
    assert read_facts(folder / f"ends-{death}.json") == [-signal.SIGKILL if rank == victim else 1 for rank in range(2)]
    left = read_facts(folder / f"facts-{death}-{1 - victim}.json")
    assert any(words in left["error"] for words in OF_GLOO), left["error"]
    unbroken = read_facts(folder / f"facts-unbroken-{DEATHS[death][2]}-0.json")["seconds"]
    patience = LIMIT if death == "stop" else PATIENCE
    assert left["seconds"] < patience.total_seconds() + 20 * unbroken


@pytest.mark.parametrize("death", DEATHS)
def test_the_newest_checkpoint_that_counts_is_whole(death, folder):
    newest = Path(newest_complete(folder / death))
    assert newest.name == "checkpoint-4" and missing_parts(newest) == [] and changed_files(newest) == {}
    assert nxm_hf.verify(newest).ok
    assert (folder / death / "checkpoint-8").exists() == (death == "save" or "random" in death)


@pytest.mark.parametrize("death", DEATHS)
def test_as_many_processes_resume_the_unbroken_run_bit_for_bit(death, folder):
    unbroken = read_facts(folder / f"facts-unbroken-{DEATHS[death][2]}-0.json")
    assert unbroken["ok"] and unbroken["newest"] is None
    for rank in range(2):
        facts = read_facts(folder / f"facts-{death}-by-2-{rank}.json")
        assert facts["newest"] == "checkpoint-4" and facts["ok"], facts.get("error")
        assert facts["weights"] == unbroken["weights"]


@pytest.mark.parametrize("death", DEATHS)
def test_one_process_resumes_what_two_began(death, folder):
    facts = read_facts(folder / f"facts-{death}-by-1-0.json")
    assert facts["newest"] == "checkpoint-4" and facts["ok"], facts.get("error")
    end = folder / f"{death}-by-1" / "checkpoint-12"
    assert missing_parts(end) == [] and changed_files(end) == {}
    assert all(weight.isfinite().all() for weight in load_file(end / "model.safetensors").values())
