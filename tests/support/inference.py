"""Sparse weights and models for the tests of inference."""

import torch
from torch import Tensor, nn

from nxm_hf.patterns import NM
from tests.support.models import make_bert


def sparse_matrix(rows: int, columns: int, n: int, m: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return a random matrix that holds n:m."""
    generator = torch.Generator().manual_seed(seed)
    return NM(n, m).project(torch.randn(rows, columns, generator=generator)).to(dtype)


def sparse_linear(rows: int, columns: int, text: tuple[int, int] = (2, 4), bias: bool = True) -> nn.Linear:
    """Return a Linear whose weight holds a pattern."""
    layer = nn.Linear(columns, rows, bias=bias).requires_grad_(False)
    layer.weight.copy_(sparse_matrix(rows, columns, *text))
    return layer


def sparse_bert(**changes):
    """Return a BERT for classification, in evaluation mode, whose blocks hold 2:4."""
    model = make_bert(**changes).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".layer." in name:
            module.weight.data = NM(2, 4).project(module.weight.data)
    return model
