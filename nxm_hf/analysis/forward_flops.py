"""The work of one forward pass: how often it uses each matrix, and what it multiplies beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.layers.modules import eval_no_grad, is_linear, is_transposed, plain_name, unwrap


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward pass: by matrix, and of all other products; None where nothing was run to count those."""

    matrices: dict[str, int]
    other: int | None


def measure(model: nn.Module, inputs: Mapping[str, Tensor] | None, tokens: int) -> Work:
    """Count one forward pass on these inputs, or on zeros of our own that fit; where none do, one row per matrix."""
    model = unwrap(model)
    found = {plain_name(name): module for name, module in model.named_modules() if is_linear(module)}
    if inputs is not None:
        return _run(model, found, inputs)
    try:
        return _run(model, found, example_inputs(model, tokens))
    except Exception:  # what a model makes of zeros can be any error, and the shares of its matrices need no run
        return Work({name: 2 * module.weight.numel() for name, module in found.items()}, None)


def _run(model: nn.Module, found: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> Work:
    counts = dict.fromkeys(found, 0)
    handles = [module.register_forward_hook(partial(_count, counts, name)) for name, module in found.items()]
    try:
        # The plain form of attention is the one whose products the counter knows on every device.
        with eval_no_grad(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Work(counts, max(counter.get_total_flops() - sum(counts.values()), 0))


def _count(counts: dict[str, int], name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
    outputs = module.weight.shape[1 if is_transposed(module) else 0]
    counts[name] += 2 * (output.numel() // outputs) * module.weight.numel()
