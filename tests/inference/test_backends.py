"""Backends say which layers they can compute, and why not."""

import pytest
import torch
from torch import nn

from nxm_hf.inference.backends import BACKENDS, backends_for
from nxm_hf.inference.candidates import find_candidates
from tests.support.inference import sparse_linear

pytest.importorskip("numba", reason="the kernels for CPUs need numba")


def only(layer):
    """Return the candidate of a single layer."""
    (candidate,) = find_candidates(nn.Sequential(layer))
    return candidate


def test_a_layer_on_the_cpu_gets_the_cpu_backend():
    backends, reason = backends_for("auto", only(sparse_linear(16, 64)))
    assert [backend.name for backend in backends] == ["cpu"] and reason is None


def test_the_reason_is_given_where_no_backend_fits():
    assert backends_for("auto", only(nn.Linear(16, 8)))[1] == "it holds no n:4 or n:8 pattern"
    half = only(sparse_linear(16, 64).half())
    assert "no CPU kernel for float16" in backends_for("cpu", half)[1]


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_is_listed_under_its_name(name):
    assert BACKENDS[name].name == name and torch.device(BACKENDS[name].device_type)
