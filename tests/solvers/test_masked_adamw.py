"""A masked step of AdamW: the kernel, the form in torch, and the arithmetic written out in double precision."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nxm_hf.solvers import base, cpu, masked_adamw, reference_only
from nxm_hf.solvers.backend import Backend
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.masked_adamw import (
    ROUNDINGS,
    AdamWStep,
    can_step_dense,
    can_step_kept,
    fits_kernel,
    step_by_kernel,
    step_dense_by_kernel,
    step_dense_in_torch,
    step_in_torch,
    step_kept_by_kernel,
)
from tests.support.cpu_kernels import INF
from tests.support.processes import environment
from tests.support.toy_training import same

pytest.importorskip("numba", reason="the kernels for CPUs need numba")
OTHERS = 1.0, 1.0, *[None] * 6, 0.0  # in the places of the numbers of a step; None is a little more
STEP = AdamWStep(3, 0.01, (0.9, 0.999), 1e-8, 0.1, pull=0.3)


@pytest.fixture(autouse=True)
def kernels_for_every_size(monkeypatch):
    monkeypatch.setattr(base, "MIN_NUMEL", 0)


def drawn(shape=(16, 64), seed=0):
    """Draw a weight, its gradient, its mask and both moments, with zeros of both signs and tiny numbers."""
    noise = torch.Generator().manual_seed(seed)
    weight, gradient, chance, first, second = (torch.randn(shape, generator=noise) for _ in range(5))
    gradient[gradient.abs() < 0.2] *= 0.0
    second[second.abs() < 0.2] = 1e-45
    return weight, gradient, chance > 0.3, first, second.abs()


def copied(tensors):
    return tuple(each.clone() for each in tensors)


def needs_kept_kernel():
    if not cpu.BACKEND.kernels.can_gather():
        pytest.skip("moments of kept entries need AVX-512")
    assert can_step_kept(), "the kernel fails its self-test"


def written_out(tensors, step, is_dense=False):
    """Take the step in double precision, entry by entry as the paper has it."""
    weight, gradient, mask, first, second = (each.double() if each.is_floating_point() else each for each in tensors)
    pruned = gradient + step.pull * weight if is_dense else 0.0
    gradient = torch.where(mask, gradient, pruned) * (-1 if step.maximize else 1)
    beta, other = step.betas
    first = beta * first + (1 - beta) * gradient
    second = other * second + (1 - other) * gradient**2
    denominator = (second / (1 - other**step.step)).sqrt() + step.eps
    weight = weight * (1 - step.lr * step.weight_decay) - step.lr / (1 - beta**step.step) * first / denominator
    return torch.where(mask, weight, weight if is_dense else 0.0), first, second


values = st.floats(0, 1, exclude_max=True)
steps = st.builds(
    AdamWStep,
    step=st.sampled_from([1.0, 2.0, 7.0, 1000.0, 1e6]),
    lr=st.sampled_from([0.0, 1e-45, 2e-5, 0.1]),
    betas=st.tuples(st.floats(0.51, 0.999), values),
    eps=st.sampled_from([1e-8, 1e-3]),
    weight_decay=st.sampled_from([0.0, 0.01, 1.0]),
    maximize=st.booleans(),
    pull=st.sampled_from([0.0, 2e-4, 0.3, -7.0, 1e-45]),
)


@settings(max_examples=60)
@given(steps, st.integers(0, 1000), st.sampled_from([(1, 16), (3, 48), (16, 64), (5, 7, 16), (80,)]))
def test_kernel_and_torch_leave_the_same_bits(step, seed, shape):
    ours, theirs = copied(drawn(shape, seed)), copied(drawn(shape, seed))
    for number in range(3):
        now = replace(step, step=step.step + number)
        assert fits_kernel(ours[0], ours[2], ours[1], *ours[3:])
        step_by_kernel([(ours, now)])
        with reference_only():
            step_in_torch(theirs, now)
        assert same(ours, theirs)


@settings(max_examples=60)
@given(steps, st.integers(0, 1000), st.sampled_from([(1, 16), (3, 48), (16, 64), (5, 7, 16), (80,)]))
def test_a_kernel_that_pulls_dense_weights_leaves_the_same_bits(step, seed, shape):
    assert can_step_dense()
    ours = copied(drawn(shape, seed))
    ours[0].view(-1)[::7] *= 0.0
    theirs, gradient = copied(ours), ours[1].clone()
    for number in range(3):
        now = replace(step, step=step.step + number)
        step_dense_by_kernel([(ours, now)])
        with reference_only():
            step_dense_in_torch(theirs, now)
        assert same(ours, theirs)
    assert same([ours[1]], [gradient])


@settings(max_examples=60)
@given(steps, st.integers(0, 1000), st.sampled_from([(1, 16), (16, 64), (5, 7, 16), (13, 208)]), st.floats(0, 1))
def test_a_kernel_for_moments_of_kept_entries_leaves_the_same_bits(step, seed, shape, density):
    needs_kept_kernel()
    weight, gradient, _, first, second = drawn(shape, seed)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    gradient.view(-1)[::5] = torch.where(mask, gradient, INF).view(-1)[::5]  # infinities of pruned entries alone
    first, second, kept = first * mask + 0.0, second * mask + 0.0, KeptEntries.of(mask)
    ours, packed = copied((weight, gradient)), [kept.pack(first), kept.pack(second)]
    theirs = copied((weight, gradient, mask, first, second))
    for number in range(3):
        now = replace(step, step=step.step + number)
        step_kept_by_kernel([((*ours, kept, *packed), now)])
        with reference_only():
            step_in_torch(theirs, now)
        assert same([ours[0], *map(kept.unpack, packed)], [theirs[0], *theirs[3:]])
    assert same([ours[1]], [gradient])


def test_kept_moments_of_weights_that_threads_share_out_are_those_of_one_thread(monkeypatch):
    needs_kept_kernel()
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**10)
    ends = []
    for threads in (1, 3):
        weights = []
        for seed, shape in enumerate([(16, 528), (1, 16), (70, 64)]):
            weight, gradient, mask, first, second = drawn(shape, seed)
            kept = KeptEntries.of(mask)
            weights.append(
                ((weight, gradient, kept, kept.pack(first), kept.pack(second)), replace(STEP, lr=0.01 * seed))
            )
        torch.set_num_threads(threads)
        try:
            step_kept_by_kernel(weights)
        finally:
            torch.set_num_threads(1)
        ends.append([each for (weight, _, _, first, second), _ in weights for each in (weight, first, second)])
        assert all(weight._version > 0 for (weight, *_), _ in weights)
    assert same(*ends)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_rounding_of_the_kernel_is_a_step_of_adamw(rounding):
    """Only one of them has the bits of torch here; another machine has another one."""
    kernels = cpu.BACKEND.kernels
    for step, is_dense in itertools.product((STEP, replace(STEP, maximize=True, weight_decay=0.0)), (False, True)):
        tensors = copied(drawn())
        expected = written_out(tensors, step, is_dense)
        kernels.adamw(rounding, [(*tensors, step.numbers)], pulls=is_dense)
        for each, exact in zip((tensors[0], *tensors[3:]), expected, strict=True):
            assert torch.allclose(each.double(), exact, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("place", "value"), [*zip(range(9), OTHERS, strict=True), (0, -1.0)])
@pytest.mark.parametrize("form", ["masked", "dense", "kept"])
def test_a_kernel_that_takes_one_number_of_a_step_for_another_fails_its_self_test(form, place, value):
    """Also one that leaves out the decay, the sign or the pull."""
    if form == "kept":
        needs_kept_kernel()
    run, test = {
        "masked": (masked_adamw._kernel(), masked_adamw._kernel_is_right),
        "dense": (masked_adamw._dense_kernel(), masked_adamw._dense_kernel_is_right),
        "kept": (masked_adamw._kept_kernel(), masked_adamw._kept_kernel_is_right),
    }[form]
    assert test(run)

    def broken(weights):
        ((*tensors, last),) = weights
        numbers = (last[-1] if form == "kept" else last).clone()
        numbers[place] = 1.0001 * numbers[place] if value is None else value
        run([(*tensors, (*last[:-1], numbers) if form == "kept" else numbers)])

    assert test(broken) == (place == 8 and form != "dense")


def test_torch_on_a_cpu_without_fused_products_has_a_kernel_too():
    code = (
        "import torch; from nxm_hf.solvers import base; base.MIN_NUMEL = 0\n"
        "from nxm_hf.solvers.masked_adamw import fits_kernel\n"
        "print(fits_kernel(torch.ones(64), torch.ones(64).bool()))"
    )
    variables = {**environment(), "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"], done.stderr


def test_without_avx512_moments_stay_dense_and_the_process_lives():
    """LLVM ends the process if it meets an instruction of AVX-512 for a CPU without it."""
    code = (
        "import torch; from nxm_hf.solvers import base; base.MIN_NUMEL = 0\n"
        "from nxm_hf.solvers.masked_adamw import can_step_kept, fits_kernel\n"
        "print(fits_kernel(torch.ones(64), torch.ones(64).bool()), can_step_kept())"
    )
    variables = {**environment(), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("step_by_kernel", [step_by_kernel, step_dense_by_kernel])
def test_only_the_gradient_and_the_mask_are_left_as_they_were(step_by_kernel):
    tensors = drawn()
    before, versions = copied(tensors), [each._version for each in tensors]
    step_by_kernel([(tensors, STEP)])
    assert same(tensors[1:3], before[1:3]) and not any(torch.equal(tensors[i], before[i]) for i in (0, 3, 4))
    assert [now._version > old for now, old in zip(tensors, versions, strict=True)] == [True, False, False, True, True]


def test_pruned_entries_are_positive_zeros_whatever_their_gradient_and_moments_are():
    for form in (lambda w: step_by_kernel([(w, STEP)]), lambda w: step_in_torch(w, STEP)):
        weight, gradient, mask, first, second = tensors = drawn()
        gradient.masked_fill_(~mask, INF).view(-1)[::3].masked_fill_(~mask.view(-1)[::3], torch.nan)
        weight.masked_fill_(~mask, -0.0)
        first.masked_fill_(~mask, 0.0)
        second.masked_fill_(~mask, 0.0)
        form(tensors)
        pruned = [each[~mask] for each in (weight, first, second)]
        assert same(pruned, [torch.zeros_like(each) for each in pruned])
        assert all(bool(each.isfinite().all()) for each in (weight, first, second))


def test_a_kept_entry_of_negative_zero_becomes_a_positive_one():
    for form in (lambda w: step_by_kernel([(w, STEP)]), lambda w: step_in_torch(w, STEP)):
        tensors = tuple(torch.zeros(64) for _ in range(5))
        tensors = tensors[0] * -1.0, tensors[1], tensors[2] == 0, tensors[3], tensors[4]
        form(tensors)
        assert same([tensors[0]], [torch.zeros(64)])


def test_a_nan_of_a_kept_entry_is_not_hidden():
    weight, gradient, mask, first, second = drawn()
    gradient[3, 5], mask[3, 5] = torch.nan, True
    step_by_kernel([((weight, gradient, mask, first, second), STEP)])
    assert all(int(each.isnan().sum()) == 1 and bool(each[3, 5].isnan()) for each in (weight, first, second))


FORMS = [(step_by_kernel, step_in_torch), (step_dense_by_kernel, step_dense_in_torch)]


@pytest.mark.parametrize(("by_kernel", "in_torch"), FORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_weights_that_threads_share_out_get_their_own_steps(threads, by_kernel, in_torch, monkeypatch):
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "MIN_NUMEL", 0)
    monkeypatch.setattr(sys.modules["nxm_hf.solvers.cpu.threads"], "PIECE", 2**6)
    shapes = [(16, 64), (1, 16), (3, 48)]
    sets = [[drawn(shape, seed) for seed, shape in enumerate(shapes)] for _ in range(2)]
    settings_of_each = [replace(STEP, step=STEP.step + i, lr=0.01 * i, pull=0.1 * i) for i in range(3)]
    torch.set_num_threads(threads)
    try:
        by_kernel(list(zip(sets[0], settings_of_each, strict=True)))
    finally:
        torch.set_num_threads(1)
    for weight, step in zip(sets[1], settings_of_each, strict=True):
        in_torch(weight, step)
    assert all(map(same, *sets))


@pytest.mark.parametrize(("by_kernel", "in_torch"), FORMS)
def test_steps_stay_on_the_device_of_the_weight(by_kernel, in_torch):
    for step in (lambda weight: by_kernel([(weight, replace(STEP))]), lambda weight: in_torch(weight, replace(STEP))):
        here, elsewhere = drawn(), drawn()
        step(here)
        with torch.device("meta"):
            step(elsewhere)
        assert same(here, elsewhere)


@pytest.mark.parametrize(
    "step", [step_dense_in_torch, lambda weight, step: step_dense_by_kernel([(weight, step)])], ids=["torch", "kernel"]
)
def test_a_step_whose_pull_is_not_given_is_that_of_torch_from_the_first_on(step):
    weight, _, mask, *_ = drawn()
    parameter, moments = nn.Parameter(weight.clone()), [torch.zeros_like(weight) for _ in range(2)]
    optimizer = torch.optim.AdamW([parameter], 0.01, (0.9, 0.999), 1e-8, 0.1, fused=True)
    for number in range(1, 4):
        parameter.grad = drawn(seed=number)[1]
        optimizer.step()
        step((weight, parameter.grad, mask, *moments), AdamWStep(number, 0.01, (0.9, 0.999), 1e-8, 0.1))
        assert same(
            [parameter, *moments], [weight, *(optimizer.state[parameter][f"exp_avg{end}"] for end in ("", "_sq"))]
        )


def test_numbers_of_a_step_have_the_same_bits_whatever_type_new_tensors_have():
    torch.set_default_dtype(torch.float64)
    try:
        numbers = replace(STEP).numbers
    finally:
        torch.set_default_dtype(torch.float32)
    assert numbers.dtype == torch.float32 and same([numbers], [STEP.numbers])


def fresh(load):
    """Return kernels of which none has been tried yet."""
    return Backend("cpu", "numba", load, groups_at_once=cpu.LANES)


@pytest.mark.parametrize("right", [*ROUNDINGS, None])
def test_the_first_rounding_that_is_right_is_used_and_a_warning_comes_if_none_is(right, monkeypatch, caplog):
    monkeypatch.setattr(cpu, "BACKEND", fresh(cpu.BACKEND._load))
    monkeypatch.setattr(masked_adamw, "_kernel_is_right", lambda run: run.args == (right,))
    for kernel in ("_dense_kernel_is_right", "_kept_kernel_is_right"):
        monkeypatch.setattr(masked_adamw, kernel, lambda run: True)
    kernels = masked_adamw._kernel(), masked_adamw._dense_kernel(), masked_adamw._kept_kernel()
    assert len(caplog.records) == (right is None)
    usable = 3 if cpu.BACKEND.kernels.can_gather() else 2
    assert [kernel and kernel.args for kernel in kernels[:usable]] == [right if right is None else (right,)] * usable
    weight = torch.ones(64)
    assert fits_kernel(weight, weight.bool()) is can_step_dense() is (right is not None)
    assert can_step_kept() is (right is not None and usable == 3)


def test_without_a_compiler_there_is_no_kernel_and_no_error(monkeypatch):
    def load():
        raise ImportError("of a test")

    monkeypatch.setattr(cpu, "BACKEND", fresh(load))
    weight = torch.ones(64)
    assert not (fits_kernel(weight, weight.bool()) or can_step_dense() or can_step_kept())


def test_what_has_no_kernel_is_told_by_type_size_and_layout():
    weight, gradient, mask, first, second = drawn()
    assert fits_kernel(weight, mask, gradient, first, second) and fits_kernel(weight, mask)
    for wrong in (
        (weight.double(), mask),
        (weight.bfloat16(), mask),
        (weight, mask.float()),
        (weight, mask, gradient.double()),
        (weight, mask, gradient.T.contiguous().T),
        (weight.T.contiguous().T, mask),
        (weight, mask.T.contiguous().T),
        (weight, mask, gradient, first[:8]),
        (weight, mask.view(32, 32)),
        (weight[:1, :60], mask[:1, :60]),
        (weight.to("meta"), mask.to("meta")),
        (weight, mask.to("meta")),
    ):
        assert not fits_kernel(*wrong)
    with reference_only():
        assert not fits_kernel(weight, mask)
    assert STEP.has_kernel and not replace(STEP, betas=(0.5, 0.9)).has_kernel
