"""Threads for workers: those of torch itself, through its OpenMP library, or Python's where it has none."""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

PRODUCTS_OF_THREAD = 2**19  # about ten microseconds of work
_IMPORTED_IN = os.getpid()
CFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def threads_for(products: int) -> int:
    """Return how many threads to use: at most torch's number, and one where waking others costs more than they save.

    Args:
        products: Multiplications of the dense product.
    """
    if os.getpid() != _IMPORTED_IN:
        return 1  # OpenMP's threads do not survive a fork
    return min(torch.get_num_threads(), 1 + products // PRODUCTS_OF_THREAD)


def run(worker: int, task: int, threads: int) -> None:
    """Run a worker in some threads at once. The calling thread is one of them.

    Args:
        worker: The address of a C function of one pointer.
        task: The address that it is called with.
        threads: How many threads.
    """
    if threads < 2:
        _function(worker)(task)
    elif (start := _openmp()) is not None:
        start(worker, task, threads, 0)
    else:
        function = _function(worker)
        others = [_pool(threads - 1).submit(function, task) for _ in range(threads - 1)]
        function(task)
        for other in others:
            other.result()


@cache
def _function(address: int) -> Callable[[int], None]:
    return CFunction(address)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nxm_hf")


@cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Return `GOMP_parallel` of the OpenMP library that torch has loaded, or None where there is none.

    Other threads would share the cores with those of torch, which wait actively for a while after each operation.
    """
    try:
        start = ctypes.CDLL(_library(Path("/proc/self/maps").read_text())).GOMP_parallel
    except (OSError, ValueError, AttributeError):  # another system, none or several libraries, or not this function
        return None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


def _library(maps: str) -> str:
    """Return the path of the OpenMP library of torch. Others, such as scikit-learn, may have loaded one of their own.

    Args:
        maps: The memory of this process, as Linux lists it.

    Raises:
        ValueError: If there is none, or it cannot be told which is torch's.
    """
    loaded = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line}
    of_torch = {path for path in loaded if Path(path).is_relative_to(Path(torch.__file__).parent)}
    (path,) = of_torch or loaded
    return path
