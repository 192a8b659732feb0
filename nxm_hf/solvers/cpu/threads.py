"""Regions of parallel work: a list of pieces, and as many threads as torch would use, each taking the next piece."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

WORTH_THREADS = 2**20  # weights: below, waking a thread costs more than it saves
PIECE = 2**18  # weights of a piece: small enough to share out evenly, large enough to outweigh taking it

Job = Callable[[], int]


def in_turns(jobs: Sequence[Job], weights: int) -> list[int]:
    """What each job returns. They share nothing, and run without the interpreter's lock for most of their time."""
    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2 or weights < WORTH_THREADS:
        return [job() for job in jobs]
    results = [0] * len(jobs)
    waiting = iter(range(len(jobs)))  # `next` of it is atomic

    def work() -> None:
        for number in waiting:
            results[number] = jobs[number]()

    others = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return results


def pieces(length: int, unit: int = 1) -> list[tuple[int, int]]:
    """Ranges that cover 0 to `length`, in steps of about `PIECE` weights; `unit` weights stand behind each number."""
    step = max(PIECE // unit, 1)
    return [(begin, min(begin + step, length)) for begin in range(0, length, step)]


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """A process has its own: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="nxm_hf")
