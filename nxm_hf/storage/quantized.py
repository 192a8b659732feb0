"""Quantized weights: the numbers that they stand for, so that zeros can be counted."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nxm_hf.layers.find import Layer
from nxm_hf.layers.modules import plain_name, unwrap
from nxm_hf.text import shortened

_ADVICE = "Verify the model before it is quantized."


def quantization_of(config: object) -> str | None:
    """Return the method that a model was quantized with, such as "bitsandbytes"; None if it was not.

    Args:
        config: The config of a model.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    words = quantization if isinstance(quantization, dict) else vars(quantization)
    method = words.get("quant_method")
    return str(getattr(method, "value", method))


def check_readable(model: nn.Module, absent: Sequence[str]) -> None:
    """Raise if a quantization put modules without a weight in the place of layers, as GPTQ and AWQ do.

    Args:
        model: The model.
        absent: Names of recorded layers that were not found in it.

    Raises:
        ValueError: If the model is quantized, and has modules of these names.
    """
    method = quantization_of(getattr(model, "config", None))
    modules = {plain_name(name) for name, _ in unwrap(model).named_modules()}
    hidden = [name for name in absent if name in modules]
    if method is not None and hidden:
        raise ValueError(
            f"The zeros of {shortened(hidden)} cannot be counted in a model quantized by {method}. {_ADVICE}"
        )


def as_numbers(layer: Layer, weight: Tensor) -> Tensor:
    """Return a weight as a tensor of numbers that has its zeros where the weight has them.

    Weights in float8 are returned in float32. 4-bit weights of bitsandbytes, and tensors that have a `dequantize` of
    their own (as in torchao), are dequantized. The integers of bitsandbytes' int8 are symmetric, so their zeros are in
    the same places. They are returned as such.

    Args:
        layer: The layer, for its shape and its name.
        weight: Its weight, quantized or not.

    Returns:
        The numbers.

    Raises:
        ValueError: If the weight is stored in a form that tells nothing of its zeros, or not in memory.
    """
    if weight.is_meta:
        raise ValueError(
            f"The weight of {layer.name} is on the meta device, where device_map= leaves what it offloads, so its "
            "zeros cannot be counted. Load the model without device_map=, or verify its directory."
        )
    try:
        numbers = _dequantized(weight)
        torch.count_nonzero(numbers[:1])
        shape = tuple(layer.matrix(numbers).shape)
    except (RuntimeError, TypeError) as error:
        raise _unreadable(layer, weight, str(error).split("\n")[0]) from error
    wanted = getattr(layer.module, "out_features", shape[0]), getattr(layer.module, "in_features", shape[-1])
    if shape != wanted and not layer.holds_experts:
        raise _unreadable(layer, weight, f"a tensor of shape {shape} for a matrix of {wanted}")
    return numbers


def _dequantized(weight: Tensor) -> Tensor:
    if getattr(weight, "quant_state", None) is not None:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight  # which imports bitsandbytes

        numbers: Tensor = dequantize_bnb_weight(cast(nn.Parameter, weight))
        return numbers
    if weight.is_complex():
        raise TypeError(f"{weight.dtype} has no order, and no layer computes with it")
    if weight.is_floating_point() and weight.element_size() == 1:
        return weight.float()  # exact; torch cannot count in float8
    return weight.dequantize() if type(weight).dequantize is not Tensor.dequantize else weight


def _unreadable(layer: Layer, weight: Tensor, reason: str) -> ValueError:
    return ValueError(
        f"The weight of {layer.name} is a {type(weight).__name__}, whose zeros cannot be counted ({reason}). {_ADVICE}"
    )
