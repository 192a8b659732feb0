"""Trainings in a process of their own, which are killed there.

killed_training kill FOLDER KIND...     trains in FOLDER/train/KIND/out until SIGKILL between two micro-batches of
                                        step 6; and kills the save of step 4 in every way, each in
                                        FOLDER/save/KIND/WAY-NUMBER/out, and writes at which file operation each was
                                        killed to FOLDER/save/KIND/killed_at.json
killed_training resume FOLDER KIND...   resumes in FOLDER/train/KIND/out, with other seeds except that of the data, and
                                        trains to the end
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback

from nxm_hf.storage.checkpoints import newest_complete
from tests.support.file_operations import WATCHED, WRITING
from tests.support.models import spare_imports
from tests.support.training import eventful, make_trainer

ARGUMENTS = dict(save_steps=2, save_total_limit=1, data_seed=0)
LIMITS = (100, 2_000, 50_000, 100_000, 160_000)  # bytes; who makes a longer file dies of it, and leaves it torn


class DieInStep(TrainerCallback):
    """Kills the process in the middle of an accumulation, when 5 steps are done."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


class DieInSave(TrainerCallback):
    """Forks child after child when the second checkpoint is due; each is killed at another point of the save.

    "anew": before each file operation of the save. "over": the same, over a whole checkpoint of step 4. "torn": in the
    middle of a file.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 4:
            return
        killed_at = {"anew": [], "over": [], "torn": []}
        for way, operations in killed_at.items():
            while True:
                reading, writing = os.pipe()
                seeds = random.getstate()
                child = os.fork()
                if child == 0:
                    random.setstate(seeds)  # a fork begins with other ones
                    return _die(way, len(operations), writing)
                os.close(writing)
                operation = os.read(reading, 10_000).decode()
                if os.waitpid(child, 0)[1] == 0:
                    break  # the child was not killed: there is no later point
                operations.append(operation)
        Path("../killed_at.json").write_text(json.dumps(killed_at))
        os._exit(0)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os._exit(0)


def _die(way: str, number: int, pipe: int) -> None:
    """Go on in a copy of the folder, with the kill set up."""
    folder = f"../{way}-{number}"
    shutil.copytree("out", f"{folder}/out")
    if way == "over":
        shutil.copytree("out/checkpoint-2", f"{folder}/out/checkpoint-4")
    os.chdir(folder)
    if way != "torn":
        sys.addaudithook(_Counter(number, pipe))
    elif number < len(LIMITS):
        os.write(pipe, f"{LIMITS[number]} bytes".encode())
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS[number], LIMITS[number]))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


class _Counter:
    """Kills its process just before the file operation of this number."""

    def __init__(self, number: int, pipe: int):
        self.left, self.pipe = number, pipe

    def __call__(self, event: str, args: tuple) -> None:
        writes = event == "open" and str(args[0]).startswith("out/") and (args[2] or 0) & WRITING
        if not writes and event not in WATCHED:
            return
        if self.left == 0:
            os.write(self.pipe, f"{event} {args[0]}".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def train(kind: str) -> None:
    make_trainer("out", eventful("admm"), kind, callbacks=[DieInStep()], **ARGUMENTS).train()


def save(kind: str) -> None:
    make_trainer("out", eventful("admm"), kind, callbacks=[DieInSave()], **ARGUMENTS).train()


def resume(kind: str) -> None:
    trainer = make_trainer("out", eventful("admm"), kind, begin=5, seed=5, **ARGUMENTS)
    trainer.train(resume_from_checkpoint=newest_complete("out"))


def in_a_fork(act: Callable[[str], None], kind: str) -> int:
    """Call a function in a copy of this process, and return how that ended."""
    child = os.fork()
    if child == 0:
        act(kind)
        os._exit(1)  # neither killed nor ended by itself
    return os.waitpid(child, 0)[1]


def enter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)


def main(command: str, folder: str, *kinds: str) -> None:
    torch.set_num_threads(1)
    spare_imports()
    for kind in kinds:
        enter(Path(folder) / "train" / kind)
        if command == "resume":
            resume(kind)
            continue
        assert os.WTERMSIG(in_a_fork(train, kind)) == signal.SIGKILL
        enter(Path(folder) / "save" / kind / "run")
        assert in_a_fork(save, kind) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
