"""The program of the tests of killed processes of DDP: it forks groups of two, of which one dies, and then resumes.

Run as `-m ... FOLDER`. Process r of a group leaves `FOLDER/facts-GROUP-r.json`, and `FOLDER/ends-GROUP.json` holds the
exit codes. The groups are forked after the imports, which take longer than a training. So killed saves of FSDP2, in
FOLDER/shards, follow in the same program; see `killed_shards`.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from nxm_hf.storage.checkpoints import newest_complete
from nxm_hf.storage.state_file import fingerprint
from tests.support.models import spare_imports
from tests.support.processes import killed_shards
from tests.support.processes.sharded import DieInStep, die_in_save
from tests.support.sharded_loops import config_of
from tests.support.sharded_trainings import train
from tests.support.training import KINDS

RECIPE = "asp"  # with a warm-up, masked steps and a frozen mask
ARGUMENTS = dict(save_steps=4, eval_steps=2, eval_strategy="steps", per_device_eval_batch_size=4)
ARGUMENTS |= dict(dropout=0.1)  # which needs the random states of both processes
PATIENCE, LIMIT = timedelta(seconds=120), timedelta(seconds=20)  # of a communication; the second where a process stops


class DieInEvaluation(TrainerCallback):
    """Kills the process between two batches of the evaluation at step 6."""

    batches = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        self.batches += state.global_step == 6
        if self.batches == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class StopInAccumulation(TrainerCallback):
    """Stops the process for good between two micro-batches, when 5 steps are done: the others can only wait."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGSTOP)


def die_before_its_random_state(trainer: Trainer) -> None:
    """Have the process killed in the save of step 8, when the other one may write the last file and the manifest."""
    save = trainer._save_rng_state

    def save_or_die(folder: str) -> None:
        if trainer.state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_rng_state = save_or_die


def with_callback(callback: type[TrainerCallback]) -> Callable[[Trainer], None]:
    """Return a function that gives a Trainer a callback."""
    return lambda trainer: trainer.add_callback(callback())


# For each death the process that dies, how, and the kind of training.
DEATHS: dict[str, tuple[int, Callable[[Trainer], None], str]] = {
    "step": (1, with_callback(DieInStep), "NxMTrainer"),
    "save": (0, die_in_save, "NxMTrainer"),
    "random": (1, die_before_its_random_state, "NxMTrainer"),
    "random-callback": (1, die_before_its_random_state, "NxMCallback"),
    "evaluation": (1, with_callback(DieInEvaluation), "NxMTrainer"),
    "stop": (1, with_callback(StopInAccumulation), "NxMTrainer"),
}


def trained(root: Path, name: str, begun: Path | None = None, prepare=id, kind: str = "NxMTrainer") -> dict:
    """Train, or resume from the newest whole checkpoint that a death has left."""
    folder, processes = root / name, dist.get_world_size()
    words = dict(ARGUMENTS, gradient_accumulation_steps=2, per_device_train_batch_size=8 // processes)
    newest = newest_complete(begun) if begun else None
    facts = train(folder, config_of(RECIPE), None, newest, prepare=prepare, kind=kind, **words)
    weights = fingerprint(load_file(folder / "checkpoint-12" / "model.safetensors").items())
    return {"newest": newest and Path(newest).name, "weights": weights, "ok": facts["ok"]}


def work(root: Path, group: str, rank: int, processes: int, act: Callable[[], dict]) -> None:
    """Train in one process of a group, and leave what came of it."""
    torch.set_num_threads(1)
    spare_imports()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true")  # the group is made below
    store = dist.FileStore(str(root / f"store-{group}"), processes)
    limit = LIMIT if group == "stop" else PATIENCE
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=limit)
    begin = time.monotonic()
    try:
        facts = act()
    except Exception:
        facts = {"error": traceback.format_exc()}
    facts["seconds"] = time.monotonic() - begin
    (root / f"facts-{group}-{rank}.json").write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit("error" in facts)  # at a normal exit, gloo's threads sometimes abort a process that has done all its work


def fork(root: Path, group: str, acts: list[Callable[[], dict]], stopped: int | None = None) -> None:
    """Run a group of processes to its end, and end one that has stopped when the others have ended."""
    children = []
    for rank, act in enumerate(acts):
        if not (child := os.fork()):
            work(root, group, rank, len(acts), act)
        children.append(child)
    ends = {}
    for rank in sorted(range(len(acts)), key=lambda rank: rank == stopped):
        if rank == stopped:
            os.kill(children[rank], signal.SIGKILL)
        ends[rank] = os.waitstatus_to_exitcode(os.waitpid(children[rank], 0)[1])
    (root / f"ends-{group}.json").write_text(json.dumps([ends[rank] for rank in range(len(acts))]))


def main(folder: str) -> None:
    """Train without a death; then with each, and resume what it has left in two processes and in one."""
    root = Path(folder)
    for kind in KINDS:
        fork(root, f"unbroken-{kind}", [partial(trained, root, f"unbroken-{kind}", kind=kind)] * 2)
    for death, (victim, prepare, kind) in DEATHS.items():
        prepares = [prepare if rank == victim else id for rank in range(2)]
        acts = [partial(trained, root, death, prepare=prepare, kind=kind) for prepare in prepares]
        fork(root, death, acts, stopped=victim if death == "stop" else None)
        for processes in (2, 1):
            name = f"{death}-by-{processes}"
            fork(root, name, [partial(trained, root, name, begun=root / death, kind=kind)] * processes)
    (root / "shards").mkdir()
    killed_shards.main(str(root / "shards"))


if __name__ == "__main__":
    main(*sys.argv[1:])
