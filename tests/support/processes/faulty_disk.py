"""Saves in a process of their own, where the disk fails or the process is killed.

faulty_disk faults FOLDER JOB...    does each job in FOLDER/JOB again and again; each time it is killed, or an error is
                                    raised, before another file operation
faulty_disk torn FOLDER JOB...      does each job while files cannot grow beyond a size, for several sizes
faulty_disk full FOLDER JOB...      does each job once in FOLDER/small, which is a small disk

What a job finds there is copied from FOLDER/JOB/before. FOLDER/JOB/after is what it leaves when nothing fails. Prints
one JSON object for each try: its job and name, the operation, the fault, and the error.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from nxm_hf import prune, save_packed
from nxm_hf.pruning.directory import prune_directory
from nxm_hf.report import write_report
from nxm_hf.storage.packed_directory import pack_directory, pack_in_place
from tests.support.file_operations import changes_files
from tests.support.models import make_bert, spare_imports
from tests.support.training import make_trainer

ERRORS = ("ENOSPC", "EIO", "EACCES", "EROFS")
THOROUGH = ("save", "pack")  # jobs with faults at all operations; the others at every third
SIZES = (0, 300, 2_000, 20_000, 60_000, 100_000)


class Disk:
    """Counts the file operations below a folder, and fails before one of them."""

    def __init__(self, folder: str, fail_at: int | None, fault: str):
        self.folder, self.fail_at, self.fault, self.count = folder, fail_at, fault, 0

    def __call__(self, event: str, args: tuple) -> None:
        if not changes_files(event, args, self.folder):
            return
        self.count += 1
        if self.count - 1 != self.fail_at:
            return
        os.write(3, f"{event} {args[0]}".encode())
        if self.fault == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "shutil.rmtree":
            return  # every caller ignores its errors, but not those of a hook
        number = getattr(errno, self.fault)
        raise OSError(number, os.strerror(number), str(args[0]))


# -- jobs ------------------------------------------------------------------------------------------------------------


def _trainer(seed: int, kind: str = "NxMTrainer"):
    trainer = make_trainer("trained", "asp", kind, begin=seed, max_steps=1, save_strategy="no", logging_steps=5)
    trainer.train()
    return trainer


def _save(kind: str, packed: bool = False, is_new: bool = False) -> Callable[[Path], object]:
    """Save a model over another one, which has other weights and more files."""
    if not is_new:
        old = _trainer(1)
        old.save_model("before/model")
        Path("before/model/README.md").write_text(Path("before/model/README.md").read_text() + "\nMine.\n")
        Path("before/model/notes.txt").write_text("mine")
    trainer = _trainer(2, kind)
    return lambda folder: trainer.save_model(str(folder / "model"), **({"packed": True} if packed else {}))


def _of_directory(work: Callable[[Path, Path], object], sparse: bool = True) -> Callable[[Path], object]:
    """Write a directory beside that of a model."""
    model = make_bert()
    if sparse:
        prune(model, "2:4")
    model.save_pretrained("source")
    return lambda folder: work(Path("source"), folder / "out")


def _pack_in_place() -> Callable[[Path], object]:
    _trainer(1).save_model("before/model")
    return lambda folder: pack_in_place(folder / "model")


def _save_packed() -> Callable[[Path], object]:
    model = make_bert()
    prune(model, "2:4")
    return lambda folder: save_packed(model, folder / "out")


def _report() -> Callable[[Path], object]:
    make_bert().save_pretrained("source")
    prune_directory("source", "pruned", "2:4")
    Path("before/out").mkdir()
    Path("before/out/report.html").write_text("an older report")
    return lambda folder: write_report(["pruned"], folder / "out")


JOBS: dict[str, Callable[[], Callable[[Path], object]]] = {
    "save": lambda: _save("NxMTrainer"),
    "save-new": lambda: _save("NxMTrainer", is_new=True),
    "save-packed": lambda: _save("NxMTrainer", packed=True),
    "save-callback": lambda: _save("NxMCallback"),
    "pack": lambda: _of_directory(pack_directory),
    "pack-in-place": _pack_in_place,
    "save-packed-alone": _save_packed,
    "convert": lambda: _of_directory(lambda source, out: prune_directory(source, out, "2:4"), sparse=False),
    "report": _report,
}


# -- tries -----------------------------------------------------------------------------------------------------------


def attempt(job: Callable[[Path], object], name: str, prepare: Callable[[], object] | None = None) -> dict[str, str]:
    """Do a job in a fork, in a fresh copy of what it finds, and return how that ended."""
    shutil.copytree("before", name)
    reading, writing = os.pipe()
    seeds = random.getstate()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 3)
        random.setstate(seeds)  # a fork begins with other ones
        sys.stdout = sys.stderr = open(os.devnull, "w")
        error = ""
        if prepare is not None:
            prepare()
        try:
            job(Path(name))
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        os.write(3, f"\n{error}".encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while part := os.read(reading, 10_000):
        said += part
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    operation, _, error = said.decode().partition("\n")
    return {"name": name, "operation": operation, "error": error, "signal": str(os.WTERMSIG(status))}


def _limit(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def tries(command: str, job: Callable[[Path], object], small: Path, every: int) -> Iterator[dict[str, str]]:
    """Do a job in all ways of a command."""
    if command == "full":
        yield attempt(job, str(small))
        return
    attempt(job, "after")
    if command == "torn":
        for size in SIZES:
            yield attempt(job, str(size), partial(_limit, size))
        return
    number, operation = 0, "the first"
    while operation:  # until there is no such operation any more
        for fault in ("SIGKILL", ERRORS[number // every % len(ERRORS)]):
            disk = Disk(f"{number}-{fault}/", number, fault)
            result = attempt(job, f"{number}-{fault}", partial(sys.addaudithook, disk))
            operation = result["operation"]
            yield {"fault": fault, **result}
        number += every


def main(command: str, folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    spare_imports()
    for name in names:
        os.makedirs(f"{folder}/{name}/before")
        os.chdir(f"{folder}/{name}")
        job = JOBS[name]()
        for result in tries(command, job, Path(folder) / "small" / name, 1 if name in THOROUGH else 3):
            print(json.dumps({"job": name, **result}))


if __name__ == "__main__":
    main(*sys.argv[1:])
