"""AdamW that masks the gradient of a sparse weight and takes its step in one pass over memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

from nxm_hf.layers.sharding import local
from nxm_hf.solvers.masked_adamw import AdamWStep, Weight, fits_kernel, step_by_kernel

MOMENTS = ("exp_avg", "exp_avg_sq")
_FUSED_DEVICES = ("cpu", "cuda")


class AdamW(torch.optim.AdamW):
    """AdamW of torch that takes the step of a weight with a frozen mask in one pass over memory.

    Weights, moments and state dicts are those of `torch.optim.AdamW(fused=True)`, bit for bit. A run may change from
    one to the other when it is resumed. An engine that trains with this optimizer leaves the masking to it: kept
    entries take the step of AdamW, and pruned ones stay +0.0. The gradient itself is not masked then. All other weights
    take torch's own fused step.

    The one pass needs the extra `fast`, and fp32 weights on a CPU in contiguous memory; FSDP2 shards count as such
    weights. In all other cases torch takes the step, between two passes that mask. These include `amsgrad`, another
    form of the step, and a `GradScaler`.

    Args:
        params: As in `torch.optim.AdamW`.
        lr: As in `torch.optim.AdamW`.
        betas: As in `torch.optim.AdamW`.
        eps: As in `torch.optim.AdamW`.
        weight_decay: As in `torch.optim.AdamW`.
        amsgrad: As in `torch.optim.AdamW`.
        maximize: As in `torch.optim.AdamW`.
        foreach: As in `torch.optim.AdamW`.
        capturable: As in `torch.optim.AdamW`.
        differentiable: As in `torch.optim.AdamW`.
        fused: As in `torch.optim.AdamW`; by default True if all parameters are floats on a CPU or a CUDA GPU, and no
            other form is set.

    Example:
        >>> from torch import nn
        >>> from nxm_hf import attach
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        >>> optimizer = AdamW(model.parameters(), lr=1e-3)
        >>> engine = attach(model, optimizer, "asp", total_steps=1)
        >>> model(torch.ones(1, 3, 16)).sum().backward()
        >>> optimizer.step()
        >>> engine.finish()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ):
        _check_arguments(params, betas, lr=lr, eps=eps, weight_decay=weight_decay)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._masks: dict[int, Tensor] = {}  # of the next step, by the id of the parameter
        self._with_kernel: set[int] | None = None  # while a step is prepared: the parameters of groups with a kernel
        if fused is None and not (foreach or capturable or differentiable):
            self._use_fused_step()

    def _use_fused_step(self) -> None:
        """Set `fused` in groups that leave it open, if torch has a fused step for all parameters."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if not all(each.is_floating_point() and each.device.type in _FUSED_DEVICES for each in parameters):
            return
        self.defaults["fused"] = self._step_supports_amp_scaling = True
        for group in self.param_groups:
            if group["fused"] is None and not group["foreach"]:
                group["fused"] = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._masks, self._with_kernel = {}, None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state dict of this optimizer or of `torch.optim.AdamW`. The form of the step stays as it is.

        Args:
            state_dict: The state dict.
        """
        forms = [{name: group[name] for name in ("foreach", "fused")} for group in self.param_groups]
        loaded = state_dict["param_groups"]
        if len(loaded) == len(forms):  # if not, torch raises
            loaded = [{**group, **form} for group, form in zip(loaded, forms, strict=True)]
        super().load_state_dict({**state_dict, "param_groups": loaded})

    def mask_next_step(self, parameter: Tensor, mask: Tensor) -> bool:
        """Have the next step mask the gradient of a parameter, and leave +0.0 where the mask prunes.

        Args:
            parameter: A parameter of this optimizer, which has a gradient.
            mask: True where an entry is kept. It has the shape of the parameter, or of its shard if it is sharded.

        Returns:
            False if the step cannot mask this parameter; then the caller has to.
        """
        if parameter.grad is None or getattr(self, "grad_scale", None) is not None:
            return False
        if not self._has_kernel_for(parameter):
            return False
        state = self.state.get(parameter)
        moments = [_part(state[name]) for name in MOMENTS] if state else []
        if not fits_kernel(_part(parameter), mask, _part(parameter.grad), *moments):
            return False
        self._masks[id(parameter)] = mask
        return True

    def waits_with_mask(self, parameter: Tensor) -> bool:
        """Return True if the mask of `mask_next_step` still waits for a step.

        Args:
            parameter: A parameter of this optimizer.
        """
        return id(parameter) in self._masks

    def forget_masks(self) -> None:
        """Drop the masks that still wait for a step."""
        self._masks.clear()
        self._with_kernel = None

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *others: Any) -> Any:
        """Collect the tensors of a group for torch's step. Masked weights take their step first, and are left out."""
        found = super()._init_group(group, params, grads, *others)
        masked = [parameter for parameter in params if id(parameter) in self._masks]
        if masked:
            left = [i for i, parameter in enumerate(params) if id(parameter) not in self._masks]
            lists = [each for each in (params, grads, *others) if isinstance(each, list) and len(each) == len(grads)]
            self._step_masked(group, masked)
            for each in lists:
                each[:] = [each[i] for i in left]
            self._with_kernel = None
        return found

    def _step_masked(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        torch._foreach_add_([state["step"] for state in states], 1)
        numbers = [float(state["step"]) for state in states]
        steps = {number: _step_of(group, number) for number in set(numbers)}
        weights: list[Weight] = []
        for parameter, state in zip(parameters, states, strict=True):
            assert parameter.grad is not None
            first, second = (_part(state[name]) for name in MOMENTS)
            weights.append((_part(parameter), _part(parameter.grad), self._masks.pop(id(parameter)), first, second))
        step_by_kernel(weights, [steps[number] for number in numbers])

    def _has_kernel_for(self, parameter: Tensor) -> bool:
        if self._with_kernel is None:
            groups = [group for group in self.param_groups if _has_kernel(group)]
            self._with_kernel = {id(each) for group in groups for each in group["params"]}
        return id(parameter) in self._with_kernel


def _check_arguments(params: Any, betas: Any, **numbers: Any) -> None:
    """Raise for arguments that torch would fail on without a name, and say what to write."""
    if isinstance(params, nn.Module):
        raise TypeError(
            f"AdamW takes the parameters of a model; got a {type(params).__name__}. Write AdamW(model.parameters())."
        )
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise TypeError(f"betas of AdamW must be two numbers; got {betas!r}. Write betas=(0.9, 0.999).")
    for name, value in numbers.items():
        if isinstance(value, str):  # YAML reads 1e-3 as a text
            try:
                meant = f"Write {name}={float(value)}."
            except ValueError:
                meant = f"Write {name}=0.001." if name == "lr" else f"Write {name}=0.01."
            raise TypeError(f"{name} of AdamW must be a number; got {value!r}. {meant}")


def _part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor. A whole tensor, the common case, is returned at once."""
    return local(tensor) if isinstance(tensor, DTensor) else tensor


def _has_kernel(group: dict[str, Any]) -> bool:
    """Return whether kernels can take the step of a parameter group."""
    others = any(group[name] for name in ("amsgrad", "capturable", "differentiable"))
    return bool(group["fused"]) and not others and _step_of(group, 1.0).has_kernel


def _step_of(group: dict[str, Any], number: float) -> AdamWStep:
    names = ("lr", "eps", "weight_decay")
    lr, eps, weight_decay = (float(group[name]) for name in names)
    first, second = map(float, group["betas"])
    return AdamWStep(number, lr, (first, second), eps, weight_decay, bool(group["maximize"]))
