"""The FLOPs of one forward pass: those of each weight matrix, and those of all other products."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nxm_hf.layers.example_inputs import example_inputs
from nxm_hf.layers.experts import expert_stacks
from nxm_hf.layers.modules import eval_no_grad, is_linear, is_transposed, plain_name, unwrap


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass. `other` are those outside the matrices; None if the model could not be run."""

    matrices: dict[str, int]
    other: int | None


def count_forward_flops(model: nn.Module, inputs: Mapping[str, Tensor] | None, tokens: int) -> ForwardFlops:
    """Count the FLOPs of one forward pass.

    If the model cannot be run on zeros, each matrix counts as multiplied by one token.

    Args:
        model: The model; it is left as it was.
        inputs: Keyword arguments of the model; by default one example of zeros.
        tokens: The length of that example.
    """
    model = unwrap(model)
    matrices = {
        plain_name(f"{name}.{stack}"): (module, stack or "weight")
        for name, module in model.named_modules()
        for stack in (("",) if is_linear(module) else expert_stacks(module))
    }
    if inputs is not None:
        return _count_run(model, matrices, inputs)
    try:
        return _count_run(model, matrices, example_inputs(model, tokens))
    except Exception:  # a model may raise any error on zeros, and the fallback needs no run
        return ForwardFlops({name: 2 * _weight(*matrix).numel() for name, matrix in matrices.items()}, None)


def _count_run(
    model: nn.Module, matrices: Mapping[str, tuple[nn.Module, str]], inputs: Mapping[str, Any]
) -> ForwardFlops:
    flops = dict.fromkeys(matrices, 0)
    handles = [
        module.register_forward_hook(partial(_add_flops, flops, name, parameter), with_kwargs=True)
        for name, (module, parameter) in matrices.items()
    ]
    try:
        # FlopCounterMode knows the products of the MATH form of attention on every device.
        with eval_no_grad(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ForwardFlops(flops, max(counter.get_total_flops() - sum(flops.values()), 0))


def _add_flops(
    flops: dict[str, int],
    name: str,
    parameter: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> None:
    weight = _weight(module, parameter)
    if weight.dim() == 3:  # of experts: they are called with the numbers of the experts that each token is sent to
        chosen = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and not x.is_floating_point()]
        flops[name] += 2 * (chosen[0].numel() if chosen else 1) * weight[0].numel()
        return
    out_features = weight.shape[1 if is_transposed(module) else 0]
    flops[name] += 2 * (output.numel() // out_features) * weight.numel()


def _weight(module: nn.Module, parameter: str) -> Tensor:
    weight = getattr(module, parameter)
    assert isinstance(weight, Tensor)
    return weight
