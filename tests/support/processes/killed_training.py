"""Trainings in a process of their own, which are killed there.

killed_training train FOLDER KIND...    trains in FOLDER/KIND/out until SIGKILL between two micro-batches of step 6
killed_training resume FOLDER KIND...   resumes there, all seeds but that of the data others, and trains to the end
killed_training save FOLDER KIND        kills the save of step 4 in every way, each in FOLDER/WAY-NUMBER/out,
                                      and prints what each was killed at, as JSON
"""

import json
import os
import random
import resource
import shutil
import signal
import sys

import torch
from transformers import TrainerCallback

from nxm_hf.storage.checkpoints import newest_complete
from tests.support.models import spare_imports
from tests.support.training import eventful, make_trainer

ARGUMENTS = dict(save_steps=2, save_total_limit=1, data_seed=0)
WATCHED = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LIMITS = (100, 2_000, 50_000, 100_000, 160_000)  # bytes; who makes a longer file dies of it, and leaves it torn


class DieInStep(TrainerCallback):
    """Dies in the middle of an accumulation, when 5 steps are done."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


class DieInSave(TrainerCallback):
    """When the second checkpoint is due, forks child after child, each to die at another point of the save.

    "anew": before each file operation of it; "over": the same, where a whole checkpoint of step 4 is there already;
    "torn": in the middle of a file.
    """

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 4:
            return
        killed_at = {"anew": [], "over": [], "torn": []}
        for way, found in killed_at.items():
            while True:
                reading, writing = os.pipe()
                seeds = random.getstate()
                child = os.fork()
                if child == 0:
                    random.setstate(seeds)  # a fork begins with other ones
                    return _die(way, len(found), writing)
                os.close(writing)
                said = os.read(reading, 10_000).decode()
                if os.waitpid(child, 0)[1] == 0:
                    break  # it lived: there is no later point
                found.append(said)
        print(json.dumps(killed_at), flush=True)
        os._exit(0)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os._exit(0)


def _die(way: str, number: int, pipe: int) -> None:
    """Go on in a copy of what there is, to die there."""
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
    """Be killed in a training, as a copy of this process, which says so if it was not."""
    child = os.fork()
    if child == 0:
        make_trainer("out", eventful("admm"), kind, callbacks=[DieInStep()], **ARGUMENTS).train()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def resume(kind: str) -> None:
    trainer = make_trainer("out", eventful("admm"), kind, begin=5, seed=5, **ARGUMENTS)
    trainer.train(resume_from_checkpoint=newest_complete("out"))


def save(kind: str) -> None:
    make_trainer("out", eventful("admm"), kind, callbacks=[DieInSave()], **ARGUMENTS).train()


def main(what: str, folder: str, *kinds: str) -> None:
    torch.set_num_threads(1)
    spare_imports()
    for kind in kinds:
        own = f"{folder}/run" if what == "save" else f"{folder}/{kind}"
        os.makedirs(own, exist_ok=True)
        os.chdir(own)
        {"train": train, "resume": resume, "save": save}[what](kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
