"""Threads for kernels: as many as torch would use, each taking the next job of a list."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

MIN_NUMEL = 2**20  # for less work, waking a thread costs more than it saves
PIECE = 2**18  # entries of a job: small enough to share out evenly, large enough to outweigh taking it

Job = Callable[[], int]


def run_jobs(jobs: Sequence[Job], numel: int) -> list[int]:
    """Run jobs, in several threads if there is enough work.

    Args:
        jobs: The jobs. They share no data, and run without the GIL for most of their time.
        numel: The entries of all jobs together.

    Returns:
        The result of each job.
    """
    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2 or numel < MIN_NUMEL:
        return [job() for job in jobs]
    results = [0] * len(jobs)
    waiting = iter(range(len(jobs)))  # `next` of it is atomic

    def work() -> None:
        for i in waiting:
            results[i] = jobs[i]()

    helpers = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()
    return results


def pieces(length: int, unit: int) -> list[tuple[int, int]]:
    """Return ranges that cover 0 to `length`, of about `PIECE` entries each.

    Args:
        length: The end of the last range.
        unit: How many entries each number of a range stands for.

    Example:
        >>> pieces(5, unit=2**17)
        [(0, 2), (2, 4), (4, 5)]
    """
    step = max(PIECE // unit, 1)
    return [(begin, min(begin + step, length)) for begin in range(0, length, step)]


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the pool of a process: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="nxm_hf")
