"""SparseLinear: a linear layer that computes with a packed weight."""

import torch
from torch import Tensor

from nxm_hf.inference.frozen import FrozenLinear
from nxm_hf.inference.layout import ROWS, Layout, deinterleave, interleave
from nxm_hf.inference.operator import compute, packed_linear


class SparseLinear(FrozenLinear):
    """Compute a linear layer with the kept entries of its weight alone, by the CPU kernels.

    It cannot be trained or saved. Where an input is infinite or NaN, the outputs are those of the dense layer.

    Args:
        matrix: The weight, [out, in], in fp32 or bf16.
        bias: The bias, or None.
        pattern: The (n, m) that the weight holds.

    Raises:
        ValueError: If the weight does not hold the pattern.
    """

    values: Tensor
    indices: Tensor
    bias: Tensor

    def __init__(self, matrix: Tensor, bias: Tensor | None, pattern: tuple[int, int]):
        super().__init__()
        self.layout = Layout(*pattern, *matrix.shape)
        values, indices = interleave(matrix.detach(), *pattern)
        filled = torch.zeros(values.shape[0] * ROWS, device=matrix.device)
        if bias is not None:
            filled[: len(bias)] = bias.detach()
        for name, tensor in (("values", values), ("indices", indices), ("bias", filled)):
            self.register_buffer(name, tensor)

    @property
    def in_features(self) -> int:
        """Return the number of inputs."""
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        """Return the number of outputs."""
        return self.layout.out_features

    @property
    def weight(self) -> Tensor:
        """Return the kept entries. Models read the type and device of a layer from its weight."""
        return self.values

    def dense_weight(self) -> Tensor:
        """Return the weight as a matrix with zeros, [out, in]."""
        return deinterleave(self.values, self.indices, self.layout)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the weight and add the bias.

        Args:
            inputs: [..., in].

        Returns:
            [..., out].

        Raises:
            RuntimeError: If a gradient with respect to the inputs is asked for, or their type is not the weight's.
        """
        inputs = self.prepared(inputs, self.values.dtype)
        bias = self.bias if self.bias.dtype == torch.float32 else self.bias.float()
        if torch.compiler.is_compiling():
            return packed_linear(inputs, self.values, self.indices, bias, *self.layout)
        return compute(inputs, self.values, self.indices, bias, self.layout)

    def extra_repr(self) -> str:
        """Return the layer's numbers, for `print(model)`."""
        n, m, out_features, in_features = self.layout
        return f"in_features={in_features}, out_features={out_features}, pattern={n}:{m}, dtype={self.values.dtype}"
