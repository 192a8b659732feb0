"""Processes that die or stop: the others end in time, and what is left can be resumed, also by fewer.

`NXM_KILLS=all python -m pytest tests/distributed/test_killed_ranks.py -k file_operation` kills a save of FSDP2 at every
file operation of either process.
"""

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import nxm_hf
from nxm_hf.storage.checkpoints import missing_parts, newest_complete
from nxm_hf.storage.manifest import changed_files
from tests.support.processes import OF_GLOO, command, facts_of, read_facts, run_group
from tests.support.processes.killed_ranks import DEATHS, LIMIT, PATIENCE
from tests.support.processes.killed_shards import KINDS
from tests.support.saving import step_of

pytestmark = pytest.mark.slow
SECONDS = 900  # until the program counts as hung


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program's trainings leave their checkpoints, with the facts of its processes."""
    folder = tmp_path_factory.mktemp("killed_ranks")
    code, output = run_group(command("killed_ranks", folder), SECONDS, OMP_NUM_THREADS="1")
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def shards(request, tmp_path_factory):
    """Where saves of sharded weights were killed, with the facts of those that resumed what they left."""
    if os.environ.get("NXM_KILLS") != "all":
        return request.getfixturevalue("folder") / "shards"
    folder = tmp_path_factory.mktemp("killed_shards")
    code, output = run_group(command("killed_shards", folder, "all"), 3600, OMP_NUM_THREADS="1")
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_a_file_operation_of_a_sharded_save_ends_the_other_process_and_leaves_a_whole_checkpoint(
    kind, shards
):
    """Also one in the middle of a file. The old checkpoint goes as soon as the new one is there."""
    found: dict[str, list[int]] = {"0": [], "1": []}
    for of, rank, where in read_facts(shards / "points.json"):
        if of != kind:
            continue
        victim, name, left = int(rank), f"{of}-{rank}-{where}", shards / "killed" / of / rank / where
        died_by = signal.SIGXFSZ if "bytes" in where else signal.SIGKILL
        assert read_facts(shards / f"ends-{name}.json") == [-died_by if r == victim else 1 for r in range(2)], name
        error = read_facts(shards / f"facts-{name}-{1 - victim}.json")["error"]
        assert any(words in error for words in OF_GLOO), error
        newest = Path(newest_complete(left))
        assert missing_parts(newest) == [] and changed_files(newest) == {} and nxm_hf.verify(newest).ok, name
        if died_by == signal.SIGKILL:
            found[rank].append(step_of(newest))
        else:
            assert step_of(newest) == 2, name
    operations = [facts[f"unbroken/{kind}"]["operations"] for facts in facts_of(shards, "unbroken", 2)]
    assert len(operations[0]) >= 20 and len(operations[1]) >= 2
    if os.environ.get("NXM_KILLS") == "all":
        assert [len(steps) for steps in found.values()] == [len(each) for each in operations]
        assert found["0"] == sorted(found["0"]) and set(found["0"]) == {2, 4} and set(found["1"]) == {2}


@pytest.mark.parametrize("processes", [2, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kill_at_a_file_operation_leaves_is_resumed_to_the_bits_of_the_unbroken_run(kind, processes, shards):
    unbroken = facts_of(shards, "unbroken", 2)[0][f"unbroken/{kind}"]["end"]
    resumed = [path for path in shards.glob(f"facts-{kind}-*-by-{processes}-*.json")]
    assert len(resumed) >= processes
    for path in resumed:
        (facts,) = read_facts(path).values()
        assert facts["end"] == unbroken, path.name
