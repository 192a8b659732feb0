"""A backend: kernels that fail are never used, and where its compiler is missing torch does the work."""

import ctypes
import subprocess

import pytest
import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, choose, cpu, masked_ops, weight_ops
from nxm_hf.solvers.backend import Backend
from tests.support.cpu_kernels import in_torch
from tests.support.processes import command, environment

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
torch.set_num_threads(1)


def pulled(x, mask, dense):
    masked_ops.pull_pruned(x, mask, dense, 0.3)
    return x


FAULTS = {
    "2:4": ("group_kernel", lambda w: parse("2:4").mask(w)),
    "largest 2:4": ("group_kernel", lambda w: parse("2:4").largest(w)),
    "project 2:4": ("group_kernel", lambda w: parse("2:4").project(w)),
    "admm 2:4": ("group_kernel", lambda w: weight_ops.admm_update(w, w.flip(0), parse("2:4"), False, True)),
    "remask 2:4": ("group_kernel", lambda w: weight_ops.remask(w, w > 0, w.clone(), parse("2:4"))),
    "pull": ("group_kernel", lambda w: pulled(w, w > 0, w.flip(0))),
    "4:8-transposable": ("tile_kernel", lambda w: parse("4:8-transposable").mask(w)),
    "nearest 2:4-transposable": ("enumeration_kernel", lambda w: parse("2:4-transposable").nearest(w)),
    "nearest 4:8-transposable": ("tile_kernel", lambda w: parse("4:8-transposable").nearest(w)),
    "project 4:8-transposable": ("tile_kernel", lambda w: parse("4:8-transposable").project(w)),
    "unstructured": ("highest_of_row", lambda w: parse("unstructured:0.5").mask(w)),
}


@pytest.fixture(autouse=True)
def untested_kernels_for_every_size(monkeypatch):
    """Use kernels for small tensors, too, and forget which have passed their self-tests."""
    monkeypatch.setattr(base, "MIN_NUMEL", 0)
    monkeypatch.setattr(cpu.BACKEND, "self_tests", {})


@pytest.mark.parametrize("fault", ["idle", "one bit", "raised"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_that_does_not_work_here_is_said_once_and_never_asked(name, fault, monkeypatch, caplog):
    """As on a machine whose compiler takes our vector code for something else, or refuses it."""

    from nxm_hf.solvers.cpu import launch

    place, act = FAULTS[name]
    whole = getattr(launch, place)

    def broken(*words):
        if fault == "raised":
            raise RuntimeError("LLVM has no such instruction")
        return (lambda *numbers: 0) if "kernel" in place else None

    def nearly(*words):
        if "kernel" not in place:
            whole(*words)
            return words[-1].logical_xor_(torch.arange(words[-1].numel()) < 2)
        kernel = whole(*words)

        def run(first, last, x, y, *rest):
            found = kernel(first, last, x, y, *rest)
            at = ctypes.c_byte.from_address(x if name.split()[0] in ("admm", "remask", "pull") else y)
            at.value ^= 1
            return found

        return run

    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    expected = in_torch(lambda: act(weight.clone()))
    monkeypatch.setattr(launch, place, nearly if fault == "one bit" else broken)
    for _ in range(2):
        assert torch.equal(act(weight.clone()), expected)
    said = [each.message for each in caplog.records if "does not work here" in each.message]
    assert said and len(said) == len(set(said)) and all("torch does its work" in each for each in said)


def test_one_broken_kernel_leaves_the_others_in_use(monkeypatch, caplog):
    from nxm_hf.solvers.cpu import launch

    whole = launch.group_kernel
    monkeypatch.setattr(launch, "group_kernel", lambda task, n, m, *rest: whole(task, n if m == 4 else n + 1, m, *rest))
    chosen = [choose(torch.ones(64, 64), parse(text)).__name__ for text in ("2:4", "4:8", "2:4-transposable")]
    assert chosen == ["by_cpu_network", "by_network", "by_cpu_duals"] and caplog.text.count("mask of 4:8") == 1


# A process of its own


@pytest.fixture(scope="module")
def checks_of_a_process():
    """Run the program `cpu_kernels` once, and return the names of its checks that have passed."""
    done = subprocess.run(
        command("cpu_kernels"), env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    "check",
    [
        "numba_is_imported_for_large_weights_only",
        "without_numba_torch_gives_the_masks",
        "kernels_need_no_place_on_disk",
        "a_fork_has_threads_of_its_own",
    ],
)
def test_in_a_process_of_its_own(check, checks_of_a_process):
    passed, errors = checks_of_a_process
    assert check in passed, errors


# Without a compiler or a device


def test_kernels_for_a_gpu_that_torch_does_not_see_are_not_even_loaded(monkeypatch):
    for sees in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda sees=sees: sees)
        loads = []
        backend = Backend("cuda", "Triton", lambda loads=loads: loads.append(1) or TorchKernels())
        assert backend.unavailable() == (None if sees else "torch sees no GPU")
        assert len(loads) == sees and backend.is_loaded == sees
        assert Backend("cpu", "numba", TorchKernels).unavailable() is None


def test_a_backend_without_its_compiler_says_so_and_supports_nothing():
    def load():
        raise ImportError("no module named Compiler")

    backend = Backend("cpu", "Compiler", load)
    weight = torch.ones(4, 64)
    assert backend.unavailable() == "Compiler cannot be imported" and not backend.works()
    assert not backend.supports(weight_ops.PROJECT, parse("2:4"), weight, weight.clone())
    assert not backend.self_tests
    with pytest.raises(ImportError, match=r"kernels for cpu tensors need Compiler, which cannot be imported"):
        _ = backend.kernels


def test_what_a_backend_supports_is_settled_by_kind_size_dtype_and_layout():
    project, keep, weight = weight_ops.PROJECT, weight_ops.KEEP, torch.randn(64, 64)
    backend, pattern = cpu.BACKEND, parse("2:4")
    assert backend.supports(project, pattern, weight, weight.clone())
    assert backend.supports(project, pattern, weight.half(), weight.half())
    assert backend.supports(keep, pattern, weight, weight > 0)
    assert not backend.supports(keep, pattern, weight.half(), weight > 0)  # in place, for fp32 only
    assert not backend.supports(project, pattern, weight.double(), weight.double())
    assert not backend.supports(project, pattern, weight.mT, weight.clone())
    assert not backend.supports(project, pattern, weight[:1, :60], weight[:1, :60].clone())  # no whole vectors
    assert not backend.supports(project, parse("3:5"), torch.ones(64, 80), torch.ones(64, 80))
    assert not backend.supports(project, parse("2:4-transposable"), weight, weight.clone())
    assert not backend.supports(project, pattern, weight.to("meta"), weight.to("meta"))


def test_a_kernel_is_tested_once(monkeypatch):
    outcomes = []
    for _ in range(2):
        assert cpu.BACKEND.passes("of a test", lambda: outcomes.append(1) or True)
        assert not cpu.BACKEND.passes("of another test", lambda: outcomes.append(1))
    assert len(outcomes) == 2


def test_entries_that_fill_no_group_are_left_to_torch():
    """Kernels for GPUs do one group at a time; what is done to each entry alone comes in fours."""
    backend = Backend("cpu", "Compiler", lambda: TorchKernels())
    for numel, supported in ((64, True), (65, False), (66, False), (68, True)):
        weight = torch.randn(numel)
        assert backend.supports(weight_ops.KEEP, weight_ops.ANY_FOUR, weight, weight > 0) == supported
        assert not backend.supports(masked_ops.SCALE, weight_ops.ANY_FOUR, weight, weight > 0)


class TorchKernels:
    """A kernel that is written in torch, and no other."""

    OPERATIONS = frozenset({"keep"})

    def run(self, operation, n, m, weight, mask):
        weight.copy_(torch.where(mask, weight, 0) + 0)
        return 0
