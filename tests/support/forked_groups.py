"""Groups of processes that are forked after the imports, which take longer than a training, and write facts."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.models import spare_imports

Groups = dict[str, tuple[int, dict[Callable, list[tuple[str, ...]]]]]  # name -> number of processes, checks with cases
LIMIT = timedelta(seconds=60)  # of a communication


def work(groups: Groups, name: str, rank: int, root: Path) -> None:
    """Do the checks of a group in one of its processes, up to the first error."""
    torch.set_num_threads(1)
    spare_imports()
    processes, checks = groups[name]
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", ACCELERATE_USE_CPU="true")  # the group is made below
    store = dist.FileStore(str(root / f"store-{name}"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=LIMIT)
    facts = {}
    try:
        for check, cases in checks.items():
            for case in cases:
                facts["/".join((check.__name__, *case))] = check(root.joinpath(check.__name__, *case), *case)
    except Exception:
        facts["error"] = traceback.format_exc()
    (root / f"facts-{name}-{rank}.json").write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit("error" in facts)  # at a normal exit, gloo's threads sometimes abort a process that has done all its work


def main(groups: Groups, folder: str, failing: Sequence[str] = ()) -> None:
    """Fork the groups of processes, one group after the other.

    Process r of a group leaves `FOLDER/facts-GROUP-r.json`, and the group `FOLDER/ends-GROUP.json`.

    Args:
        groups: The groups.
        folder: Where they write.
        failing: The groups that may fail.
    """
    for name, (processes, _) in groups.items():
        children = []
        for rank in range(processes):
            if not (child := os.fork()):
                work(groups, name, rank, Path(folder))
            children.append(child)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        (Path(folder) / f"ends-{name}.json").write_text(json.dumps(ends))
        if any(ends) and name not in failing:
            sys.exit(f"a process of the group {name!r} failed")
