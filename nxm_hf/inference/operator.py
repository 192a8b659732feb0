"""The product with a packed weight as an operator of torch, which `torch.compile` takes as one step."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nxm_hf.inference import cpu
from nxm_hf.inference.layout import Layout, deinterleave


def compute(x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, layout: Layout) -> Tensor:
    """Multiply tokens with a packed weight, and add the bias.

    Args:
        x: The tokens, [..., in].
        values: The kept entries of the weight.
        indices: Their places.
        bias: The bias, filled up with zeros to whole blocks of rows.
        layout: The numbers of the weight.

    Returns:
        The outputs, [..., out], in the type of `x`.
    """
    if x.shape[-1] != layout.in_features:
        raise RuntimeError(f"Inputs of shape {tuple(x.shape)} do not fit a layer of {layout.in_features} inputs.")
    shape = (*x.shape[:-1], layout.out_features)
    if x.device.type == "cpu" and x.dtype in cpu.DTYPES:
        rows = x.reshape(-1, layout.in_features).float().contiguous()
        y, valid = cpu.load()(rows, values, indices, bias, layout)
        if valid:
            return y.view(shape).to(x.dtype)
    # An infinite input makes a NaN with each pruned weight, as it does in the dense product.
    weight = deinterleave(values, indices, layout).to(x.dtype)
    return F.linear(x, weight, bias[: layout.out_features].to(x.dtype))


@torch.library.custom_op("nxm_hf::packed_linear", mutates_args=())
def packed_linear(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, n: int, m: int, out_features: int, in_features: int
) -> Tensor:
    """Multiply tokens with a packed weight, and add the bias; see `compute`.

    Args:
        x: The tokens, [..., in].
        values: The kept entries of the weight.
        indices: Their places.
        bias: The bias, filled up with zeros to whole blocks of rows.
        n: Kept entries of a group.
        m: Entries of a group.
        out_features: Rows of the weight.
        in_features: Columns of the weight.
    """
    return compute(x, values, indices, bias, Layout(n, m, out_features, in_features))


@packed_linear.register_fake
def _(
    x: Tensor, values: Tensor, indices: Tensor, bias: Tensor, n: int, m: int, out_features: int, in_features: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))
