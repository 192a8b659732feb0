"""Threads of kernels, and processes that have them."""

import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import cpu, solve
from nxm_hf.solvers.entry_counts import COUNT_ENTRIES
from nxm_hf.solvers.self_test import Counts

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("kernels_for_every_size")


@contextmanager
def threads_of_torch(count):
    torch.set_num_threads(count)
    try:
        yield sys.modules["nxm_hf.solvers.cpu.threads"]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("threads", "jobs"), [(1, 5), (2, 2), (2, 7), (3, 3), (3, 2), (2, 1), (2, 0)])
def test_each_job_runs_once_and_its_result_stands_in_its_place(threads, jobs):
    """As many run at a time as torch has threads: each of the first waits for the others."""
    at_once = min(threads, jobs)
    begin, done, names = threading.Barrier(max(at_once, 1)), [], {threading.current_thread().name}

    def job(number):
        if number < at_once:
            begin.wait(timeout=60)
        done.append(number)
        names.add(threading.current_thread().name)
        return number * number

    with threads_of_torch(threads) as module:
        results = module.run_jobs([lambda number=number: job(number) for number in range(jobs)], module.MIN_NUMEL)
    assert results == [number * number for number in range(jobs)] and sorted(done) == [*range(jobs)]
    names.discard(threading.current_thread().name)
    assert all(name.startswith("nxm_hf") for name in names)  # who looks at a process sees whose threads they are


def test_little_work_is_done_by_the_thread_that_has_it():
    with threads_of_torch(3) as module:
        names = module.run_jobs([threading.get_ident] * 9, module.MIN_NUMEL - 1)
    assert names == [threading.get_ident()] * 9


@pytest.mark.parametrize("fails", ["helper", "caller"])
def test_an_error_of_a_job_is_raised_whichever_thread_meets_it(fails):
    begin, caller = threading.Barrier(2), threading.get_ident()

    def job():
        begin.wait(timeout=60)
        if (threading.get_ident() == caller) is (fails == "caller"):
            raise ArithmeticError("of a test")
        return 0

    with threads_of_torch(2) as module, pytest.raises(ArithmeticError, match="of a test"):
        module.run_jobs([job, job], module.MIN_NUMEL)


@pytest.mark.parametrize("threads", [1, 3])
def test_counts_of_pieces_add_up_and_a_nan_in_any_of_them_is_told(threads, monkeypatch):
    count = cpu.BACKEND.runner(COUNT_ENTRIES, Counts(2, 4))
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    expected = COUNT_ENTRIES.reference(Counts(2, 4), weight)
    assert expected > 2**32
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**9)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    with threads_of_torch(threads):
        assert count(weight) == expected
        for place in (0, 2**9 - 1, 2**9, 2**11 + 5, 2**12 - 1):
            broken = weight.clone()
            broken.view(-1)[place] = torch.nan
            assert count(broken) == -1


@pytest.mark.parametrize("text", ["2:4", "4:8-transposable", "unstructured:0.5"])
def test_threads_change_no_mask_and_are_as_many_as_torch_uses(text, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**10)
    scores = torch.randn(64, 512)
    before = threading.active_count()
    alone = solve(scores, parse(text))
    assert threading.active_count() <= before  # other tests may have started some, and ended them since
    torch.set_num_threads(3)
    try:
        assert torch.equal(solve(scores, parse(text)), alone)
    finally:
        torch.set_num_threads(1)
    assert threading.active_count() <= before + 2


@pytest.mark.parametrize("text", ["2:4-transposable", "4:8-transposable"])
def test_threads_change_no_nearest_weight(text, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**10)
    weight, pattern = torch.randn(64, 512) ** 5, parse(text)
    masks, projections = [], []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            masks.append(pattern.nearest(weight))
            projections.append(pattern.project(weight))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(*masks) and torch.equal(*projections)
    assert torch.equal(projections[0], weight * masks[0])


def test_kernels_run_without_the_interpreters_lock():
    """With it threads take turns, which gives the same masks in more time."""
    kernels, tiles = (sys.modules[f"nxm_hf.solvers.cpu.{name}"] for name in ("kernels", "tile_kernels"))
    for kernel in (
        tiles.tile_kernel(4, 8),
        tiles.tile_kernel(4, 8, squares=True),
        kernels.group_kernel("mask", 2, 4, 32, 0x7F800000),
    ):
        assert kernel.targetoptions["nogil"] is True
