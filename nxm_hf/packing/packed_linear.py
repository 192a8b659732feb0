"""PackedLinear: a linear layer whose weight stays packed in memory."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nxm_hf.layers.modules import is_transposed
from nxm_hf.packing.format import check_packed, pack, packed_shapes, row_pattern, unpack
from nxm_hf.patterns import Pattern, parse


class PackedLinear(nn.Module):
    """Compute a linear layer from a packed N:M weight.

    The weight is unpacked for each forward pass and dropped after it, so outputs equal those of the dense layer bit for
    bit. It cannot be trained.

    Args:
        in_features: Inputs of the layer.
        out_features: Outputs of the layer.
        pattern: N:M or transposable N:M.
        bias: Whether the layer has a bias.
        transposed: Whether the layer stores its weight as [in, out], as Conv1D of GPT-2 does. The packed matrix is
            [out, in] for both.
        dtype: Type of the weight and the bias.
        device: Device of the weight and the bias.

    Raises:
        ValueError: If the pattern is not N:M along a row, or does not fit the shape.

    Example:
        >>> linear = nn.Linear(8, 4)
        >>> linear.weight.data = parse("2:4").project(linear.weight)
        >>> packed = PackedLinear.from_dense(linear, "2:4")
        >>> torch.equal(packed(torch.ones(1, 8)), linear(torch.ones(1, 8))), tuple(packed.weight.shape)
        (True, (4, 4))
    """

    weight: nn.Parameter
    weight_nxm_idx: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: Pattern | str,
        *,
        bias: bool = True,
        transposed: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        row = row_pattern(pattern)
        if row is None:
            raise ValueError(f"{pattern} cannot be packed: it is not N:M along a row. Write pattern='2:4'.")
        self.in_features, self.out_features, self.transposed = in_features, out_features, transposed
        self.pattern, self.row_pattern = parse(pattern), row
        values, indices = packed_shapes((out_features, in_features), row)
        self.weight = nn.Parameter(torch.empty(values, dtype=dtype, device=device), requires_grad=False)
        self.register_buffer("weight_nxm_idx", torch.empty(indices, dtype=torch.uint8, device=device))
        own_bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), requires_grad=False)
        self.register_parameter("bias", own_bias if bias else None)

    @classmethod
    def like(cls, layer: nn.Module, pattern: Pattern | str) -> "PackedLinear":
        """Make a layer with the shape, type and device of a dense one. Its values are not set.

        Args:
            layer: A Linear or a Conv1D of transformers.
            pattern: N:M or transposable N:M.
        """
        weight, transposed = cast(Tensor, layer.weight), is_transposed(layer)
        rows, columns = reversed(weight.shape) if transposed else weight.shape
        has_bias = getattr(layer, "bias", None) is not None
        packed = cls(
            columns, rows, pattern, bias=has_bias, transposed=transposed, dtype=weight.dtype, device=weight.device
        )
        return packed.train(layer.training)

    @classmethod
    def from_dense(cls, layer: nn.Module, pattern: Pattern | str, name: str = "this layer") -> "PackedLinear":
        """Pack a dense layer.

        Args:
            layer: A Linear or a Conv1D of transformers. It is not changed, and its bias is shared.
            pattern: N:M or transposable N:M, which its weight holds.
            name: Name of the layer, for the error.

        Raises:
            ValueError: If the weight does not hold the pattern.
        """
        weight = cast(Tensor, layer.weight)
        packed = cls.like(layer, pattern)
        values, indices = pack(weight.t() if packed.transposed else weight, packed.row_pattern, name)
        packed.weight, packed.weight_nxm_idx = nn.Parameter(values, requires_grad=False), indices
        if packed.bias is not None:
            packed.bias = nn.Parameter(cast(Tensor, layer.bias).detach(), requires_grad=False)
        return packed

    def check(self, name: str = "this layer") -> None:
        """Raise unless the values and indices are those of a packed matrix.

        Args:
            name: Name of the layer, for the error.

        Raises:
            ValueError: If they are damaged.
        """
        shape = (self.out_features, self.in_features)
        check_packed(self.weight, self.weight_nxm_idx, self.row_pattern, shape, name)

    def dense_weight(self) -> Tensor:
        """Return the unpacked weight as the dense layer stores it: [out, in], or [in, out] if `transposed`."""
        shape = (self.in_features, self.out_features) if self.transposed else (self.out_features, self.in_features)
        weight = self.weight.new_empty(shape)
        unpack(self.weight, self.weight_nxm_idx, self.row_pattern, out=weight.t() if self.transposed else weight)
        return weight

    def to_dense(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return a dense layer with the same weight and bias, which can be trained.

        Args:
            dtype: Type of the new layer; by default that of this one.

        Returns:
            A Linear, or a Conv1D of transformers if `transposed`.
        """
        with torch.device("meta"):
            if self.transposed:
                layer: nn.Module = Conv1D(self.out_features, self.in_features)
            else:
                layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        self.fill(layer, dtype)
        return layer

    def fill(self, layer: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Give a dense layer of the same shape the weight and bias of this one, as parameters that can be trained.

        Args:
            layer: A Linear or a Conv1D of transformers, such as one on the meta device.
            dtype: Type of the parameters; by default that of this layer.
        """
        layer.weight = nn.Parameter(self.dense_weight().to(dtype or self.weight.dtype))
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().to(dtype or self.bias.dtype))
        layer.train(self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply by the unpacked weight and add the bias.

        Args:
            inputs: [..., in].

        Returns:
            [..., out].
        """
        weight = self.dense_weight()
        if not self.transposed:
            return F.linear(inputs, weight, self.bias)
        flat = inputs.reshape(-1, self.in_features)
        outputs = flat @ weight if self.bias is None else torch.addmm(self.bias, flat, weight)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the layer's settings, for `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"pattern={self.pattern}"
        )
