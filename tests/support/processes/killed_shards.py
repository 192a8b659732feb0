"""Saves of FSDP2 in which one of two processes is killed, and trainings that resume what that leaves.

killed_shards FOLDER            for each kind of state dict, three deaths: two of the first process, one of the other;
                                what each of the first two leaves is resumed, by two processes and by one
killed_shards FOLDER all        for each kind, a death of either process before every file operation, and in the middle
                                of files of several sizes; two processes resume what each leaves, and so does one

`FOLDER/points.json` lists the deaths as [kind, rank, where]. Their checkpoints are in FOLDER/killed/KIND/RANK/WHERE.
"""

import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from nxm_hf.storage.checkpoints import newest_complete
from nxm_hf.storage.state_file import fingerprint, read_state
from tests.support.file_operations import audit_torch, changes_files
from tests.support.forked_groups import main as fork_groups
from tests.support.processes import facts_of
from tests.support.sharded_loops import config_of
from tests.support.sharded_trainings import LAYERS, train

KINDS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
ARGUMENTS = dict(max_steps=6, save_steps=2, save_total_limit=1)
# Bytes of a file; a process that writes a longer one dies of it, and leaves it torn. The second writes a small one.
LIMITS = ((100, 2_000, 50_000, 88_400, 100_000, 160_000), (100, 2_000))
SEED = 0  # of the deaths that are chosen


class DuringSave(TrainerCallback):
    """Tells a function of each file operation of this process in the save of step 4, just before it is done."""

    def __init__(self, folder: Path, act):
        self.folder, self.act, self.saving = str(folder), act, False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.saving and changes_files(event, args, self.folder):
            self.act(f"{event} {args[0]}")

    def on_step_end(self, args, state, control, **kwargs):
        self.saving = state.global_step == 4

    def on_step_begin(self, args, state, control, **kwargs):
        self.saving = False


def sharded(folder: Path, kind: str, resume: str | None = None, prepare=id) -> dict:
    """Train with sharded weights, and return what the last checkpoint holds."""
    train(folder, config_of("admm"), {**LAYERS, "state_dict_type": kind}, resume, prepare=prepare, **ARGUMENTS)
    return end_of(folder)


def end_of(folder: Path) -> dict:
    """Return fingerprints of what the last checkpoint holds."""
    last = folder / "checkpoint-6"
    moments = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    tensors = {f"{number}/{name}": t for number, slots in moments.items() for name, t in slots.items()}
    parts = {"model": load_file(last / "model.safetensors"), "state": read_state(last)[1], "moments": tensors}
    return {name: fingerprint(sorted(part.items())) for name, part in parts.items()}


def unbroken(folder: Path, kind: str) -> dict:
    """Train without a death; return the file operations of this process in the save of step 4, too."""
    operations: list[str] = []
    watch = DuringSave(folder, operations.append)
    return {"end": sharded(folder, kind, prepare=lambda trainer: trainer.add_callback(watch)), "operations": operations}


def killed(folder: Path, kind: str, rank: str, where: str) -> dict:
    """Train until one process is killed at its file operation of a number, or by a file of as many bytes."""

    def prepare(trainer: Trainer) -> None:
        if dist.get_rank() == int(rank):
            trainer.add_callback(_Limit(int(where.split()[0])) if "bytes" in where else DuringSave(folder, die))

    left = iter(range(int(where.split()[0]), -1, -1))

    def die(_operation: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return sharded(folder, kind, prepare=prepare)


class _Limit(TrainerCallback):
    """Has the process die of a file that grows beyond a size in the save of step 4."""

    def __init__(self, size: int):
        self.size = size

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def resumed(folder: Path, kind: str, *death: str) -> dict:
    """Resume what a death has left, in two processes with sharded weights or in one with whole ones."""
    processes = dist.get_world_size()
    newest = newest_complete(folder.parents[4] / "killed" / Path(kind, *death[:-1]))
    folder = folder.parent / f"by-{processes}"
    if processes == 2:
        return {"newest": newest, "end": sharded(folder, kind, newest)}
    # In one process two batches of a step, which are those of the two processes, are added up.
    train(folder, config_of("admm"), None, newest, gradient_accumulation_steps=2, **ARGUMENTS)
    return {"newest": newest, "end": end_of(folder)}


def chosen(folder: Path, every: bool) -> list[tuple[str, str, str]]:
    """Return the deaths to die: all that there are, or a few for each kind."""
    points = []
    draw = random.Random(SEED)
    for kind in KINDS:
        lists = [facts[f"unbroken/{kind}"]["operations"] for facts in facts_of(folder, "unbroken", 2)]
        first, second = (
            [*map(str, range(len(operations))), *(f"{size} bytes" for size in sizes)]
            for operations, sizes in zip(lists, LIMITS, strict=True)
        )
        if not every:
            first, second = draw.sample(first, 2), draw.sample(second, 1)
        points += [(kind, "0", where) for where in first] + [(kind, "1", where) for where in second]
    return points


def main(folder: str, which: str = "") -> None:
    """Train without a death, and then with each of the chosen ones."""
    audit_torch()
    fork_groups({"unbroken": (2, {unbroken: [(kind,) for kind in KINDS]})}, folder)
    points = chosen(Path(folder), which == "all")
    (Path(folder) / "points.json").write_text(json.dumps(points))
    for point in points:
        fork_groups({"-".join(point): (2, {killed: [point]})}, folder, failing=("-".join(point),))
    for number, point in enumerate(points):
        for processes in (2, 1) if which == "all" else ((2,), (1,), ())[number % 3]:
            name = "-".join((*point, f"by-{processes}"))
            fork_groups({name: (processes, {resumed: [(*point, str(processes))]})}, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
