"""SemiStructuredLinear: a linear layer that computes with a 2:4 weight on a GPU, by CUTLASS or cuSPARSELt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from nxm_hf.inference.frozen import FrozenLinear
from nxm_hf.layers.gpu_kernels import FLOAT_CUSPARSELT, FLOAT_CUTLASS, GPUKernel

TOKENS_STEP = 8  # both libraries take multiples of this many tokens of fp16 or bf16


@dataclass(frozen=True)
class Library:
    """A library of 2:4 products, by the operators that `torch.sparse.SparseSemiStructuredTensor` calls too.

    They are called here without that subclass of tensors, whose dispatch in Python takes longer than a small product.

    Args:
        kernel: What it takes.
        compress: Return the kept entries of a matrix, and their places unless these are in the same tensor.
        multiply: Multiply tokens with them and add the bias, by the algorithm of a number. Return [tokens, out].
    """

    kernel: GPUKernel
    compress: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    multiply: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, int], Tensor]


def _compress_for_cutlass(matrix: Tensor) -> tuple[Tensor, Tensor]:
    packed, places = sparse_semi_structured_from_dense_cutlass(matrix)
    return packed, places


def _multiply_by_cutlass(
    x: Tensor, packed: Tensor, places: Tensor | None, bias: Tensor | None, algorithm: int
) -> Tensor:
    assert places is not None
    if bias is None:
        return torch._sparse_semi_structured_mm(packed, places, x.t()).t()
    return torch._sparse_semi_structured_addmm(bias, packed, places, x.t()).t()


def _compress_for_cusparselt(matrix: Tensor) -> tuple[Tensor, None]:
    return torch._cslt_compress(matrix), None


def _multiply_by_cusparselt(
    x: Tensor, packed: Tensor, places: Tensor | None, bias: Tensor | None, algorithm: int
) -> Tensor:
    return torch._cslt_sparse_mm(packed, x.t(), bias=bias, transpose_result=True, alg_id=algorithm)


CUTLASS = Library(FLOAT_CUTLASS, _compress_for_cutlass, _multiply_by_cutlass)
CUSPARSELT = Library(FLOAT_CUSPARSELT, _compress_for_cusparselt, _multiply_by_cusparselt)


class SemiStructuredLinear(FrozenLinear):
    """Compute a linear layer with the kept entries of its 2:4 weight alone, by a GPU library.

    It cannot be trained or saved, and its type cannot be changed. In the dense layer, an input that is infinite or NaN
    makes a NaN with each pruned weight. Here it does not.

    Args:
        matrix: The weight, [out, in], in fp16 or bf16. It holds 2:4, and the library takes its shape.
        bias: The bias, or None.
        library: The library that computes it.
    """

    packed: Tensor
    places: Tensor | None
    bias: Tensor | None

    def __init__(self, matrix: Tensor, bias: Tensor | None, library: Library) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        self.library = library
        self.algorithms: tuple[tuple[int, int], ...] = ((0, 0),)
        matrix = matrix.detach() + 0.0  # so that no zero is -0.0, whose bits are not all zero
        packed, places = library.compress(matrix.contiguous())
        own_bias = None if bias is None else bias.detach().to(matrix.dtype)
        for name, tensor in (("packed", packed), ("places", places), ("bias", own_bias)):
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Tensor:
        """Return the kept entries. Models read the type and device of a layer from its weight."""
        return self.packed

    def use_algorithms(self, found: Sequence[tuple[int, int]]) -> None:
        """Set the algorithms that compute different numbers of tokens.

        Args:
            found: Pairs of the most tokens that an algorithm is for, and its number. The last is for more tokens too.
        """
        self.algorithms = tuple(sorted(found))

    def algorithm(self, tokens: int) -> int:
        """Return the number of the algorithm for a number of tokens.

        Args:
            tokens: The number of tokens.
        """
        for most, algorithm in self.algorithms[:-1]:
            if tokens <= most:
                return algorithm
        return self.algorithms[-1][1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the weight and add the bias.

        Args:
            inputs: [..., in], of any strides.

        Returns:
            [..., out], contiguous.

        Raises:
            RuntimeError: If a gradient with respect to the inputs is asked for, or they do not fit the weight.
        """
        inputs = self.prepared(inputs, self.packed.dtype)
        if inputs.shape[-1] != self.in_features:
            shape = tuple(inputs.shape)
            raise RuntimeError(f"Inputs of shape {shape} do not fit a layer of {self.in_features} inputs.")
        sizes = (*inputs.shape[:-1], self.out_features)
        if inputs.numel() == 0:
            return inputs.new_empty(sizes)
        flat = inputs.reshape(-1, self.in_features).to(self.packed.dtype).contiguous()
        tokens = flat.shape[0]
        missing = -tokens % TOKENS_STEP
        if missing:
            flat = F.pad(flat, (0, 0, 0, missing))
        outputs = self.library.multiply(flat, self.packed, self.places, self.bias, self.algorithm(tokens))
        return outputs[:tokens].contiguous().view(sizes).to(inputs.dtype)

    def extra_repr(self) -> str:
        """Return the layer's numbers, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.packed.dtype}, library={self.library.kernel.name}"
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SemiStructuredLinear":
        """Refuse to change the type: cuSPARSELt keeps places of entries among the bits of the numbers."""
        changed = fn(self.packed)
        if (changed.dtype, changed.device.type) != (self.packed.dtype, self.packed.device.type):
            have, asked = (f"{each.dtype} on {each.device.type}" for each in (self.packed, changed))
            raise RuntimeError(
                f"A layer after to_inference stays {have}, and {asked} was asked for. Load the model again with the "
                "dtype and device that you need, and then call to_inference."
            )
        super()._apply(fn, recurse)
        return self
