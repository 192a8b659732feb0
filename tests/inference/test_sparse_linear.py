"""SparseLinear computes what the dense layer does, and says what it cannot do."""

import pickle

import pytest
import torch
from torch import nn

from nxm_hf.inference.sparse_linear import SparseLinear
from tests.support.inference import sparse_linear

pytest.importorskip("numba", reason="the kernels for CPUs need numba")

CLOSE = dict(rtol=1e-4, atol=1e-4)


def pair(rows=40, columns=68, bias=True, dtype=torch.float32):
    """Return a dense layer and the sparse one of the same weight."""
    dense = sparse_linear(rows, columns, bias=bias).to(dtype)
    return dense, SparseLinear(dense.weight, dense.bias, (2, 4))


@pytest.mark.parametrize("shape", [(68,), (0, 68), (1, 68), (3, 5, 68), (2, 0, 68), (2, 2, 2, 68)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_have_the_shape_type_and_values_of_the_dense_layer(shape, bias, dtype):
    dense, sparse = pair(bias=bias, dtype=dtype)
    x = torch.randn(shape).to(dtype)
    y = sparse(x)
    assert y.dtype == dtype and y.shape == dense(x).shape
    torch.testing.assert_close(y, dense(x), **(CLOSE if dtype == torch.float32 else dict(rtol=0.02, atol=0.02)))


def test_inputs_need_not_be_contiguous():
    dense, sparse = pair()
    for x in (torch.randn(68, 9).t(), torch.randn(4, 136)[:, ::2], torch.randn(1, 68).expand(5, 68)):
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
def test_infinite_inputs_give_what_the_dense_layer_gives(strange):
    dense, sparse = pair()
    x = torch.randn(6, 68)
    x[2, 7] = strange
    expected = dense(x)
    assert not expected[2].isfinite().any() and expected[1].isfinite().all()
    torch.testing.assert_close(sparse(x), expected, equal_nan=True, **CLOSE)


def test_the_weight_comes_back_and_its_type_can_be_read():
    dense, sparse = pair()
    assert torch.equal(sparse.dense_weight(), dense.weight)
    assert sparse.weight.dtype == torch.float32 and (sparse.in_features, sparse.out_features) == (68, 40)


def test_another_type_of_inputs_or_width_is_an_error():
    _, sparse = pair()
    with pytest.raises(RuntimeError, match=r"inputs are torch\.bfloat16 and the weight is torch\.float32"):
        sparse(torch.randn(2, 68).bfloat16())
    with pytest.raises(RuntimeError, match="do not fit a layer of 68 inputs"):
        sparse(torch.randn(2, 64))


def test_autocast_gives_the_type_that_it_gives_dense_layers():
    dense, sparse = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.randn(3, 68)
        assert sparse(x).dtype == dense(x).dtype == torch.bfloat16
        torch.testing.assert_close(sparse(x), dense(x), rtol=0.02, atol=0.05)


def test_a_gradient_is_refused_and_inference_mode_works():
    dense, sparse = pair()
    x = torch.randn(3, 68, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        sparse(x)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), dense(x), **CLOSE)


def test_it_cannot_be_saved_and_says_what_to_do():
    model = nn.Sequential(pair()[1])
    with pytest.raises(RuntimeError, match=r"0 computes with a packed weight .*save_pretrained\(dir\)"):
        model.state_dict()


def test_a_copy_and_a_cast_compute_the_same():
    dense, sparse = pair()
    x = torch.randn(5, 68)
    assert torch.equal(pickle.loads(pickle.dumps(sparse))(x), sparse(x))
    half = sparse.to(torch.bfloat16)
    torch.testing.assert_close(half(x.bfloat16()), dense.to(torch.bfloat16)(x.bfloat16()), rtol=0.02, atol=0.02)
