"""Jobs of `nxm prune` in a process of their own, each killed before another file operation.

killed_pruning FOLDER KILLS    runs the job of `arguments` in FOLDER/NUMBER, once for each of so many points, evenly
                                  spaced over all its file operations; prints what each was killed at, as JSON
"""

import json
import os
import signal
import sys

import torch

from nxm_hf.cli.main import main as nxm

WATCHED = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def arguments(folder: str) -> list[str]:
    """The command."""
    options = ["--method", "wanda", "--calibration", "texts.txt", "--length", "16", "--samples", "8"]
    options += ["--reconstruct", '{"steps": 2}']
    return ["prune", "dense", f"{folder}/out", *options]


class Counter:
    """Counts the file operations below a folder, and kills its process just before one of them."""

    def __init__(self, folder: str, kill_at: int | None):
        self.folder, self.kill_at, self.count = folder, kill_at, 0

    def __call__(self, event: str, args: tuple) -> None:
        writes = event == "open" and (args[2] or 0) & WRITING
        if not (writes or event in WATCHED) or self.folder not in str(args[0]):
            return
        if self.count == self.kill_at:
            os.write(1, f"{event} {args[0]}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def run(folder: str, kill_at: int | None = None) -> int:
    """The job in a fork; how many file operations it took."""
    os.makedirs(folder)
    child = os.fork()
    if child == 0:
        sys.addaudithook(counter := Counter(folder, kill_at))
        sys.stdout = sys.stderr = open(os.devnull, "w")
        code = nxm(arguments(folder))
        os._exit(code or counter.count + 10)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 10


def main(folder: str, kills: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    total = run("unbroken")
    for number in range(int(kills)):
        run(str(number), number * total // int(kills))
    print(json.dumps(total))


if __name__ == "__main__":
    main(*sys.argv[1:])
