"""The kernels of GPUs run on a CPU by Triton's interpreter, beside torch.

A program of its own: see tests/solvers/gpu/test_kernels.py.
"""

import logging

import torch

from nxm_hf.patterns import parse
from nxm_hf.solvers import base, choose, cpu, gpu, reference_only, self_test, solve, transposable_duals, weight_ops
from tests.support.toy_training import same

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
said = []


def in_torch(act):
    with reference_only():
        return act()


def beside(act, *tensors):
    """What was found and is left of the tensors, by kernels and by torch."""
    ours, theirs = ([x.clone() for x in tensors] for _ in range(2))
    found, expected = act(*ours), in_torch(lambda: act(*theirs))
    assert same(ours, theirs)
    assert (found is None and expected is None) or torch.equal(found, expected)


def masks_and_projections():
    for text, dtypes in {"1:2": FLOATS, "3:4": FLOATS, "16:32": FLOATS[:1]}.items():
        pattern = parse(text)
        for dtype in dtypes:
            given = self_test.difficult_numbers(64 * 96, dtype, "cpu", 3, self_test.EXTREMES).view(64, 96)
            assert choose(given, pattern).__name__ == "by_gpu_counting", said
            for weight in (given, given.T):
                beside(lambda w, pattern=pattern: solve(w, pattern), weight)
                beside(pattern.largest, weight)
                assert same([pattern.project(weight)], [in_torch(lambda w=weight, p=pattern: p.project(w))])


def weights():
    for text in ("2:4", "4:8"):
        pattern = parse(text)
        w, r, other = (
            self_test.difficult_numbers(64 * 96, torch.float32, "cpu", i, self_test.EXTREMES[:-2]) for i in range(3)
        )
        beside(lambda w, r, p=pattern: weight_ops.admm_update(w, r, p, False, True), w, r)
        beside(lambda w, m, d, p=pattern: weight_ops.remask(w, m, d, p), w, other > 0, r)
        beside(
            weight_ops.keep,
            self_test.difficult_numbers(64 * 96, torch.float32, "cpu", 9, self_test.EXTREMES),
            other > 0,
        )


def numbers_that_are_none():
    pattern = parse("2:4")
    for place in (0, 4097, 6143):
        for act in (
            lambda w, r: pattern.largest(w),
            lambda w, r: pattern.project(w),
            lambda w, r: weight_ops.admm_update(w, r, pattern, False, True),
            lambda w, r: weight_ops.admm_update(r, w, pattern, False, True),
            lambda w, r: weight_ops.remask(w, r > 0, r, pattern),
        ):
            w, r = (torch.randn(6144) for _ in range(2))
            w[place] = torch.nan
            try:
                act(w, r)
            except ValueError as error:
                assert "NaN" in str(error)
            else:
                raise AssertionError("a NaN was not refused")


def tiles():
    asked = []
    kernel = gpu.BACKEND.kernels.prices
    gpu.BACKEND.kernels.prices = lambda *words: asked.append(words) or kernel(*words)
    gpu.BACKEND.kernels.ROUNDS = 4  # the interpreter takes a second for them
    for n, m in ((2, 4), (3, 8)):
        for step in (0.0, 1.0):  # with it, nearly all are equal
            scores = torch.randn(2 * m, 5 * m).abs()
            scores = (scores / step).round() if step else scores
            scores[0, 0] = torch.inf
            pattern = parse(f"{n}:{m}-transposable")
            mask, other = (
                transposable_duals.by_duals(scores, pattern),
                in_torch(lambda s=scores, p=pattern: transposable_duals.by_duals(s, p)),
            )
            assert mask[0, 0] and (mask.unflatten(0, (-1, m)).sum(1) == n).all()
            assert (mask.unflatten(1, (-1, m)).sum(2) == n).all()
            ours, theirs = ((scores.double() * kept)[scores.isfinite()].sum() for kept in (mask, other))
            assert ours >= theirs * (1 - 1e-6)
    assert len(asked) >= 4


def a_kernel_that_fails():
    whole = gpu.BACKEND.kernels.launch
    for fault in ("wrong", "raised"):

        def launch(task, n, m, *tensors, fault=fault):
            found = whole(task, n, m, *tensors)
            if fault == "raised" and task == "mask":
                raise RuntimeError("no such instruction")
            if task == "mask":
                tensors[1].view(-1)[7] ^= True
            return found

        said.clear()
        gpu.BACKEND.kernels.launch = launch
        gpu.BACKEND.self_tests.clear()
        for _ in range(2):
            assert choose(torch.randn(64, 64), parse("2:4")).__name__ == "by_counting"
        assert len(said) == 1 and "mask of 2:4" in said[0]
        weight = torch.randn(64, 64)
        assert gpu.BACKEND.supports(weight_ops.PROJECT, parse("2:4"), weight, weight.clone())
    gpu.BACKEND.kernels.launch = whole


def main():
    torch.manual_seed(0)
    logging.getLogger("nxm_hf").addFilter(lambda record: said.append(record.getMessage()) or False)
    base.MIN_NUMEL, gpu.BACKEND.device_type, cpu.BACKEND.group_sizes = 0, "cpu", ()
    assert gpu.BACKEND.unavailable() is None
    masks_and_projections()
    weights()
    numbers_that_are_none()
    tiles()
    assert not said, said
    a_kernel_that_fails()


if __name__ == "__main__":
    main()
