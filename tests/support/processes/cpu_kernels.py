"""Kernels for CPUs in a process of their own: without numba, without a place on disk, and after a fork.

Prints the name of each check that has passed. The checks share one process, as starting one takes seconds.
"""

import os
import sys

import torch
from torch.utils.data import DataLoader

from nxm_hf.patterns import parse
from nxm_hf.solvers import choose, cpu, solve

TEXTS = ("2:4", "4:8-transposable", "unstructured:0.5")


def numba_is_imported_for_large_weights_only():
    parse("2:4").project(torch.randn(64, 64))
    assert "numba" not in sys.modules and "llvmlite" not in sys.modules


def without_numba_torch_gives_the_masks():
    sys.modules["numba"] = sys.modules["llvmlite"] = None  # an import of them raises
    scores = torch.randn(256, 256)
    for text in TEXTS:
        assert choose(scores, parse(text)).__name__ in ("by_counting", "by_duals", "by_threshold")
        assert int(parse(text).mask(scores).sum()) == 2**15
    assert cpu.BACKEND.unavailable() == "numba cannot be imported"
    del sys.modules["numba"], sys.modules["llvmlite"]
    for name in [name for name in sys.modules if name.startswith("nxm_hf.solvers.cpu.")]:
        del sys.modules[name]
    cpu.BACKEND.__dict__.pop("_kernels")  # what was imported is cached


def kernels_need_no_place_on_disk():
    from numba.core import caching

    caching.CacheImpl._locator_classes = []
    scores = torch.randn(256, 256)
    for text in ("2:4", "unstructured:0.5"):
        assert choose(scores, parse(text)).__name__.startswith("by_cpu_")
        assert int(parse(text).mask(scores).sum()) == 2**15
    assert "nxm_hf.solvers.cpu.unstructured" in sys.modules


def a_fork_has_threads_of_its_own():
    torch.set_num_threads(2)
    scores, pattern = torch.randn(2048, 1024), parse("2:4")
    mask = solve(scores, pattern).numpy()
    if not (child := os.fork()):  # where torch's own threads, of OpenMP, would wait for ever: hence NumPy
        os._exit(0 if (solve(scores, pattern).numpy() == mask).all() else 7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for _ in DataLoader(list(range(8)), batch_size=4, num_workers=2, multiprocessing_context="fork"):
        assert (solve(scores, pattern).numpy() == mask).all()


def main():
    torch.manual_seed(0)
    for check in (
        numba_is_imported_for_large_weights_only,
        without_numba_torch_gives_the_masks,
        kernels_need_no_place_on_disk,
        a_fork_has_threads_of_its_own,
    ):
        check()
        print(check.__name__, flush=True)


if __name__ == "__main__":
    main()
