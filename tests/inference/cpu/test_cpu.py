"""Kernels are used only after they have passed their self-test."""

import pytest
import torch

from nxm_hf.inference import cpu

pytest.importorskip("numba", reason="the kernels for CPUs need numba")


def test_kernels_of_two_of_four_work_here():
    assert cpu.obstacle(2, 4, torch.float32) is None


def test_types_and_groups_without_kernels_are_named():
    assert "no CPU kernel for float16" in cpu.obstacle(2, 4, torch.float16)
    assert "no CPU kernel for 8:16" in cpu.obstacle(8, 16, torch.float32)


@pytest.mark.parametrize("fault", ["value", "rest", "infinity"])
def test_a_wrong_kernel_fails_its_self_test(fault):
    multiply = cpu.load()

    def wrong(x, values, indices, bias, layout):
        y, valid = multiply(x, values, indices, bias, layout)
        if fault == "value":
            y[0, 0] *= 1.001
        if fault == "rest" and len(x) > 16:
            y[-1, -1] = 0
        return y, valid or fault == "infinity"

    assert cpu._is_right(multiply, 2, 4, torch.float32)
    assert not cpu._is_right(wrong, 2, 4, torch.float32)


def test_a_missing_numba_is_named_with_what_to_type(monkeypatch):
    def missing():
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(cpu, "load", missing)
    cpu.obstacle.cache_clear()
    assert "pip install 'nxm-hf[fast]'" in cpu.obstacle(2, 4, torch.float32)
    cpu.obstacle.cache_clear()
