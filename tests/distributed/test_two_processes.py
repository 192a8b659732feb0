"""Two processes: they agree bit for bit, train what one does, and leave checkpoints that any number can resume."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

import nxm_hf
from nxm_hf.storage.checkpoints import missing_parts
from nxm_hf.storage.manifest import changed_files, read_manifest
from nxm_hf.storage.state_file import STATE_FILE, fingerprint
from tests.support.grids import FEW, SPARSE
from tests.support.models import make_arguments, make_bert, make_rows
from tests.support.processes import run_group
from tests.support.processes.distributed import BY_FEW, BY_RECIPE, END, LAUNCHED, MIDDLE, SGD, beginning, keys, train

pytestmark = pytest.mark.slow
TORCHRUN = ["torch.distributed.run", "--nnodes=1", "--nproc_per_node=2", "--rdzv_backend=c10d"]
TORCHRUN += ["--rdzv_endpoint=127.0.0.1:0"]
# `--cpu` would start one process, unless there is MPI; `--multi_gpu` with use_cpu=True is how accelerate starts two.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
LIMIT = 300  # seconds until a launch counts as hung


def launch(command: list[str], checks: str, folder: Path) -> list[dict]:
    """The facts of both processes; whatever hangs is ended."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, "-m", *command, "-m", "tests.support.processes.distributed", checks, str(folder)]
    code, output = run_group(program, LIMIT, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    assert code == 0, output
    assert "destroy_process_group" not in output and "Traceback" not in output, output
    facts = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    errors = [fact["error"] for fact in facts if "error" in fact]
    assert not errors, "\n".join(errors)
    return facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where this file's trainings leave their checkpoints."""
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def one(folder):
    """The same trainings in one process, whose batches are those of two put together."""
    return {
        (name, recipe): train(recipe, folder / "one" / name / recipe, per_device_train_batch_size=8, **changes)
        for name, recipes, changes in (("adam", SPARSE, {}), ("sgd", FEW, SGD))
        for recipe in recipes
    }


@pytest.fixture(scope="module")
def two(folder, one):
    """The facts of two processes of `torchrun`."""
    return launch(
        TORCHRUN,
        "adam,sgd,best,resumed,fewer,callback,derailed,head,plain,untrained,beginning,warmed,halfway,spared",
        folder,
    )


@pytest.fixture(scope="module")
def accelerated(folder):
    """The facts of two processes of `accelerate launch`; in the last check one of them fails."""
    return launch(ACCELERATE, "launched,machines", folder / "accelerate")


def checkpoint(folder: Path, check: str, recipe: str, step: int) -> Path:
    """A checkpoint of two processes; in "adam" each has a folder of its own."""
    return folder / check / recipe / ("rank-0" if check == "adam" else "") / f"checkpoint-{step}"


@pytest.mark.parametrize("check", [*BY_RECIPE, *BY_FEW])
def test_two_processes_hold_the_same_bits_after_every_step(check, two):
    """Weights, state of the engine, records, and what is deployed. Pitfall 17: ranks disagree on masks."""
    for key in map("/".join, keys(check)):
        assert two[0][key] == two[1][key], key


def test_accelerate_launch_trains_what_torchrun_trains(two, accelerated):
    one, other = (facts["launched"] for facts in accelerated)
    assert one == other == two[0][f"adam/{LAUNCHED}"]


@pytest.mark.parametrize(("check", "recipe"), [*(("adam", name) for name in SPARSE), *(("sgd", name) for name in FEW)])
def test_two_processes_train_what_one_trains_with_twice_the_batch(check, recipe, one, two, folder):
    """In "sgd" gradients accumulate and nothing hides their scale, so that the loss must count just once."""
    assert_alike(folder / "one" / check / recipe / f"checkpoint-{END}", checkpoint(folder, check, recipe, END))
    losses = [losses_of(facts) for facts in (one[check, recipe], two[0][f"{check}/{recipe}"])]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", SPARSE)
def test_a_checkpoint_of_two_processes_is_whole_sparse_and_written_by_one(recipe, two, folder):
    for step in (MIDDLE, END):
        written = checkpoint(folder, "adam", recipe, step)
        assert missing_parts(written) == []
        assert (written / STATE_FILE).is_file()
        assert changed_files(written) == {} and read_manifest(written).keys() >= {STATE_FILE, "rng_state_0.pth"}
        assert nxm_hf.verify(written).ok
        other = folder / "adam" / recipe / "rank-1" / written.name
        assert [path.name for path in other.iterdir()] == ["rng_state_1.pth"]


@pytest.mark.parametrize("recipe", FEW)
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_the_manifest_of_two_processes_covers_the_random_states_of_both(kind, recipe, two, folder):
    for step in (2, 4):
        written = folder / "callback" / recipe / kind / f"checkpoint-{step}"
        assert read_manifest(written).keys() >= {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"}
        assert changed_files(written) == {} and missing_parts(written) == []


@pytest.mark.parametrize("recipe", FEW)
def test_a_run_resumed_in_two_processes_is_the_unbroken_run(recipe, two):
    unbroken, resumed = two[0][f"best/{recipe}"], two[0][f"resumed/{recipe}"]
    assert resumed["steps"] == unbroken["steps"][2:]
    assert resumed["weights"] == unbroken["weights"]
    assert resumed["records"] == unbroken["records"]


@pytest.mark.parametrize("recipe", FEW)
def test_one_process_resumes_what_two_began(recipe, two, folder):
    middle = checkpoint(folder, "adam", recipe, MIDDLE)
    train(recipe, folder / "alone" / recipe, resume=str(middle), per_device_train_batch_size=8)
    assert_alike(folder / "alone" / recipe / f"checkpoint-{END}", checkpoint(folder, "adam", recipe, END))


@pytest.mark.parametrize("recipe", FEW)
def test_two_processes_resume_what_one_began(recipe, two, folder):
    assert_alike(folder / "one" / "adam" / recipe / f"checkpoint-{END}", checkpoint(folder, "fewer", recipe, END))


@pytest.mark.parametrize("recipe", FEW)
def test_every_process_evaluates_the_deployed_weights(recipe, two, folder):
    for facts in two:
        assert facts[f"best/{recipe}"]["evaluated"] == [True] * 3
    for step in (2, 4, 6):
        model = type(make_bert()).from_pretrained(checkpoint(folder, "best", recipe, step))
        trainer = Trainer(model, make_arguments(folder), eval_dataset=make_rows(16))
        expected = next(
            r["eval_loss"] for r in two[0][f"best/{recipe}"]["records"] if r["step"] == step and "eval_loss" in r
        )
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_the_loss_of_an_evaluation_before_training_counts_once(two, folder):
    alone = Trainer(make_bert(hidden_dropout_prob=0.0), make_arguments(folder), eval_dataset=make_rows(16)).evaluate()[
        "eval_loss"
    ]
    assert [facts["untrained"]["loss"] for facts in two] == pytest.approx([alone] * 2, abs=1e-6)


def test_before_training_all_processes_get_what_the_first_one_pruned(two, folder):
    assert [facts["beginning"] for facts in two] == [beginning(folder)] * 2 and two[0]["beginning"]["ok"]


@pytest.mark.parametrize("check, first", [("warmed", 0), ("halfway", 1)])
def test_two_processes_that_prune_in_the_middle_stay_one(check, first, two):
    one, other = (facts[check] for facts in two)
    assert one["steps"] == other["steps"] and one["ok"] and other["ok"]
    assert [record["nxm/phase"] for record in one["records"] if "nxm/phase" in record] == [first, first + 1, first + 1]


def test_where_one_process_cannot_prune_by_rows_none_does(two):
    """They must not wait for each other, and what the other one made of its weights must not be kept."""
    one, other = (facts["spared"] for facts in two)
    assert one == other and one["auto"]["weights"] == one["fisher"]["weights"]


@pytest.mark.parametrize("recipe", FEW)
def test_two_processes_end_with_the_weights_of_the_best_checkpoint(recipe, two):
    """Pitfall 30, in its distributed form; the best is made to be one before the last, whose state must not win."""
    for facts in two:
        facts = facts[f"best/{recipe}"]
        assert Path(facts["best"]).name == "checkpoint-4"
        assert facts["weights"] == fingerprint(load_file(Path(facts["best"]) / "model.safetensors").items())
        assert facts["ok"]


@pytest.mark.parametrize("recipe", FEW)
def test_the_callback_in_a_plain_trainer_trains_what_nxm_trainer_trains(recipe, two):
    facts = two[0][f"callback/{recipe}"]
    assert facts["callback"] == facts["trainer"]
    assert facts["callback"]["ok"]
    assert facts["resumed"]["steps"] == facts["callback"]["steps"][2:]
    assert facts["resumed"]["weights"] == facts["callback"]["weights"]


@pytest.mark.parametrize("recipe", FEW)
def test_processes_that_disagree_are_told_so_and_leave_no_whole_checkpoint(recipe, two):
    """Pitfall 17."""
    for facts in two:
        assert "The processes hold different weights" in facts[f"derailed/{recipe}"]["error"]
        assert facts[f"derailed/{recipe}"]["missing"]


def test_processes_that_disagree_on_what_is_not_pruned_are_told_so_too(two):
    for facts in two:
        assert "The processes hold different weights" in facts["head"]["error"]
        assert facts["head"]["missing"]


def test_the_recipe_dense_in_two_processes_is_a_trainer_in_two_processes(two):
    for facts in two:
        assert facts["plain"]["nxm"] == facts["plain"]["trainer"]


def test_a_machine_that_was_to_save_and_got_no_weights_says_so(accelerated):
    """`save_on_each_node`: transformers 5.23 lets the first process alone write weights."""
    first, second = (facts["machines"] for facts in accelerated)
    assert bool(first["missing"]) is bool(second["missing"])  # a save that fails in one process is complete nowhere
    if second["missing"]:
        assert "has written no weights into" in second["error"]
    else:
        assert second["error"] == "nothing"


def losses_of(facts: dict) -> torch.Tensor:
    return torch.tensor([record["loss"] for record in facts["records"] if "loss" in record])


def assert_alike(one: Path, two: Path) -> None:
    """Raise unless what was trained differs by at most 1e-5, and the masks in at most one entry of a thousand."""
    theirs, deployed = trained(two), [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, weight in trained(one).items():
        if not name.endswith("key.bias"):  # attention does not depend on it, so that rounding alone moves it
            torch.testing.assert_close(
                weight, theirs[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    pairs = [(weight != 0, deployed[1][name] != 0) for name, weight in deployed[0].items()]
    same = sum(torch.count_nonzero(mine == other).item() for mine, other in pairs)
    assert same >= 0.999 * sum(mine.numel() for mine, _ in pairs)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """What the optimizer trained, of a checkpoint: dense weights where there are any."""
    state, weights = load_file(folder / STATE_FILE), load_file(folder / "model.safetensors")
    for name, weight in state.items():
        layer, slot = name.rsplit("/", 1)
        if slot == "dense" or (slot == "weight" and f"{layer}/dense" not in state):
            weights[f"{layer}.weight"] = weight
    return weights
