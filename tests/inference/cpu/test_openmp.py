"""Workers run in torch's own threads or in Python's, and in one thread after a fork."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support.inference import sparse_linear

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
from nxm_hf.inference.cpu import openmp
from nxm_hf.inference.sparse_linear import SparseLinear

X = torch.randn(40, 1024, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    dense = sparse_linear(1024, 1024)
    torch.set_num_threads(2)
    yield SparseLinear(dense.weight, dense.bias, (2, 4))
    torch.set_num_threads(1)


def _send(queue, layer):
    queue.put(layer(X).numpy())


def test_products_after_a_fork_are_the_same(layer):
    expected = layer(X)
    assert openmp.threads_for(2**30) == 2
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_send, args=(queue, layer))
    child.start()
    result = torch.from_numpy(queue.get(timeout=60))
    child.join()
    assert torch.equal(result, expected) and child.exitcode == 0


def test_one_thread_is_used_after_a_fork_and_for_little_work(monkeypatch):
    assert openmp.threads_for(1000) == 1
    monkeypatch.setattr(openmp, "_IMPORTED_IN", os.getpid() + 1)
    assert openmp.threads_for(2**40) == 1


def test_several_calling_threads_do_not_disturb_each_other(layer):
    inputs = [torch.randn(count, 1024) for count in (1, 20, 40, 130) * 4]
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(layer, inputs))
    assert all(map(torch.equal, results, expected))


def test_python_threads_do_the_work_where_torch_has_no_openmp(layer, monkeypatch):
    expected = layer(X)
    monkeypatch.setattr(openmp, "_openmp", lambda: None)
    assert torch.equal(layer(X), expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="the library is found on Linux alone")
def test_openmp_of_torch_is_found_where_torch_uses_it():
    if "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[1]:
        pytest.skip("this torch has threads of its own")
    assert openmp._openmp() is not None


def test_the_openmp_of_torch_is_told_from_that_of_another_library():
    folder = Path(torch.__file__).parent / "lib"
    own, other = f"{folder}/libgomp.so.1", "/env/scikit_learn.libs/libgomp-e985bcbb.so.1.0.0"
    lines = [f"7f00-7f01 r-xp 00000000 00:00 1    {path}" for path in (other, own, "/env/libc.so.6", own)]
    assert openmp._library("\n".join(lines)) == own
    assert openmp._library(lines[0]) == other, "an environment may share one library"
    for maps in ("", f"{lines[0]}\n{lines[0]}2"):
        with pytest.raises(ValueError):
            openmp._library(maps)
