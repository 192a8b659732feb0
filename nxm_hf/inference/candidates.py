"""Candidates: the layers of a model that could compute with packed weights."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nxm_hf.inference.layout import held_pattern
from nxm_hf.layers.modules import is_linear, is_transposed
from nxm_hf.packing import PackedLinear


@dataclass(frozen=True)
class Candidate:
    """A linear layer, and the pattern that its weight holds.

    Args:
        name: The name of its module.
        module: A Linear, a Conv1D of Transformers, or a PackedLinear.
        pattern: The sparsest (n, m) that the weight holds, or None if it holds none that has kernels.
        shape: The shape (out, in) of the weight.
        dtype: The type of the weight.
        device: The device of the weight.
    """

    name: str
    module: nn.Module
    pattern: tuple[int, int] | None
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @property
    def bias(self) -> Tensor | None:
        """Return the bias."""
        bias = self.module.bias
        return bias if isinstance(bias, Tensor) else None

    @property
    def kind(self) -> tuple[object, ...]:
        """Return what is equal for layers that take the same time."""
        return self.pattern, self.shape, self.dtype, self.device, self.bias is None, type(self.module)

    @property
    def pattern_text(self) -> str:
        """Return the pattern as n:m, or "dense"."""
        return "{}:{}".format(*self.pattern) if self.pattern else "dense"

    def matrix(self) -> Tensor:
        """Return the weight as [out, in], with its zeros."""
        return _matrix(self.module)

    def dense(self) -> nn.Module:
        """Return the layer with a dense weight: the module itself, unless its weight is packed."""
        return self.module.to_dense().requires_grad_(False) if isinstance(self.module, PackedLinear) else self.module


@torch.no_grad()
def find_candidates(model: nn.Module) -> list[Candidate]:
    """Return the linear layers of a model in its order, without those that share their weight with another module.

    Args:
        model: The model.
    """
    owners = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    candidates = []
    for name, module in model.named_modules():
        if not isinstance(module, PackedLinear) and (not is_linear(module) or isinstance(module, nn.Conv1d)):
            continue
        weight = module.weight
        if isinstance(weight, nn.Parameter) and weight.is_floating_point() and owners[id(weight)] == 1:
            matrix = _matrix(module)
            shape = (matrix.shape[0], matrix.shape[1])
            candidates.append(Candidate(name, module, held_pattern(matrix), shape, weight.dtype, weight.device))
    return candidates


def _matrix(module: nn.Module) -> Tensor:
    if isinstance(module, PackedLinear):
        weight = module.dense_weight()
        return weight.t() if module.transposed else weight
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    return weight.t() if is_transposed(module) else weight
