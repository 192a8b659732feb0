"""AdamW that masks or pulls a sparse weight and takes its step in one pass over memory."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

from nxm_hf.engine.kept_state import MOMENTS, KeptState, Packed, Packer
from nxm_hf.layers.sharding import local
from nxm_hf.solvers.masked_adamw import (
    AdamWStep,
    KeptWeight,
    Weight,
    can_step_dense,
    can_step_kept,
    fits_kernel,
    step_by_kernel,
    step_dense_by_kernel,
    step_kept_by_kernel,
)

_FUSED_DEVICES = ("cpu", "cuda")


class AdamW(torch.optim.AdamW):
    """AdamW of torch that takes the step of a weight with a frozen mask in one pass over memory.

    Weights, moments and state dicts are those of `torch.optim.AdamW(fused=True)`, bit for bit. A run may change from
    one to the other when it is resumed. An engine that trains with this optimizer leaves the masking to it: kept
    entries take the step of AdamW, and pruned ones stay +0.0. The gradient itself is not masked then. The pull of
    `sr-ste` is a part of the same pass. All other weights take torch's own fused step.

    The one pass needs the extra `fast`, and fp32 weights on a CPU in contiguous memory; FSDP2 shards count as such
    weights. In all other cases torch takes the step, between two passes that mask. These include `amsgrad`, another
    form of the step, and a `GradScaler`.

    Of such a weight, moments of kept entries alone are stored: half of the state at 2:4, a quarter at 1:4. This needs a
    CPU with AVX-512, and moments of pruned entries that are zero, as an engine leaves them. Those of shards are dense.
    Code that reads `optimizer.state` finds dense moments, which are packed again at a later step.

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
        fused: As in `torch.optim.AdamW`; by default True if all parameters are floats on a CPU or a CUDA GPU, none has
            gaps in memory, and no other form is set.
        kept_moments: Whether moments of kept entries alone are stored where a kernel can step them. If False, all
            moments stay dense, and each stays the same tensor.

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

    kept_moments = True
    unpacks_for_readers = True  # whether `state_dict` makes all moments dense

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
        kept_moments: bool = True,
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
        self.kept_moments = kept_moments
        # Masks of the next step by the id of the parameter, or masks and factors of pulls.
        self._masks: dict[int, tuple[Tensor, float | None]] = {}
        self._packer = Packer()
        self._with_kernel: set[int] | None = None  # while a step is prepared: the parameters of groups with a kernel
        if fused is None and not (foreach or capturable or differentiable):
            self._use_fused_step()

    def _use_fused_step(self) -> None:
        """Set `fused` in groups that leave it open, if torch has a fused step for all parameters."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if not all(each.is_floating_point() and each.device.type in _FUSED_DEVICES for each in parameters):
            return
        if not all(map(_fills_memory, parameters)):  # on a CPU, torch's fused step would train the gaps
            return
        self.defaults["fused"] = self._step_supports_amp_scaling = True
        for group in self.param_groups:
            if group["fused"] is None and not group["foreach"]:
                group["fused"] = True

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "kept_moments": self.kept_moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._masks, self._packer, self._with_kernel = {}, Packer(), None

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict that `torch.optim.AdamW` has, with dense moments.

        Moments of pruned entries are +0.0. They are dense in this optimizer too, until its next step packs them again.
        """
        if self.unpacks_for_readers:
            for parameter, state in self.state.items():
                if isinstance(state, KeptState):
                    self.state[parameter] = dict(state)
        return super().state_dict()

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
        fits = self._fits_kernel(parameter, mask)
        if fits:
            self._masks[id(parameter)] = mask, None
        return fits

    def pull_next_step(self, parameter: Tensor, dense: Tensor, mask: Tensor, factor: float) -> bool:
        """Have the next step pull pruned entries of a dense weight to zero: add them, times a factor, to its gradient.

        Args:
            parameter: A parameter of this optimizer, which has a gradient.
            dense: The dense weight that takes the place of the parameter in the next step.
            mask: True where an entry is kept. It has the shape of the parameter.
            factor: The factor.

        Returns:
            False if the step cannot pull this parameter; then the caller has to.
        """
        fits = self._fits_kernel(parameter, mask) and can_step_dense()
        if fits:
            self._masks[id(dense)] = mask, factor
        return fits

    def _fits_kernel(self, parameter: Tensor, mask: Tensor) -> bool:
        if parameter.grad is None or getattr(self, "grad_scale", None) is not None:
            return False
        if not self._has_kernel_for(parameter):
            return False
        state = self.state.get(parameter)
        is_packed = isinstance(state, KeptState) and state.is_packed
        moments = [_part(state[name]) for name in MOMENTS] if state and not is_packed else []
        return fits_kernel(_part(parameter), mask, _part(parameter.grad), *moments)

    def mask_is_final(self, parameter: Tensor) -> None:
        """Record that the masks of a parameter keep no other entries from here on, so that its moments may be packed.

        Args:
            parameter: A parameter of this optimizer, which has a state.
        """
        self._packer.begin_anew(self.state, parameter)

    def waits_with_mask(self, parameter: Tensor) -> bool:
        """Return True if the mask of `mask_next_step` still waits for a step.

        Args:
            parameter: A parameter of this optimizer.
        """
        return id(parameter) in self._masks

    def forget_masks(self) -> None:
        """Drop the masks and pulls that still wait for a step."""
        self._masks.clear()
        self._with_kernel = None

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Collect the tensors of a group for torch's step. Masked weights take their step first, and are left out."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not any(id(parameter) in self._masks for parameter in parameters):
            return super()._init_group(group, *lists)
        masked: list[tuple[Tensor, Packed | None]] = []
        packs = self.kept_moments and can_step_kept()
        for parameter in parameters:
            self.state[parameter]  # even an empty state, so that states have the order of parameters
            if id(parameter) in self._masks:
                masked.append((parameter, self._packed(parameter) if packs else None))
                if not self.state[parameter]:
                    super()._init_group({**group, "params": [parameter]}, *([] for _ in lists))
        left = [parameter for parameter in parameters if id(parameter) not in self._masks]
        self._step_masked(group, masked)
        self._with_kernel = None
        return super()._init_group({**group, "params": left}, *lists)

    def _packed(self, parameter: Tensor) -> Packed | None:
        mask, pull = self._masks[id(parameter)]
        if isinstance(parameter, DTensor) or pull is not None:
            return None
        return self._packer.packed(self.state, parameter, mask)

    def _step_masked(self, group: dict[str, Any], parameters: list[tuple[Tensor, Packed | None]]) -> None:
        counters = [self.state[parameter]["step"] for parameter, _ in parameters]
        torch._foreach_add_(counters, 1)
        numbers = [float(counter) for counter in counters]
        steps = {number: _step_of(group, number) for number in set(numbers)}
        masked: list[tuple[Weight, AdamWStep]] = []
        pulled: list[tuple[Weight, AdamWStep]] = []
        kept: list[tuple[KeptWeight, AdamWStep]] = []
        for (parameter, packed), number in zip(parameters, numbers, strict=True):
            assert parameter.grad is not None
            mask, pull = self._masks.pop(id(parameter))
            part, gradient = _part(parameter), _part(parameter.grad)
            if packed is None:
                first, second = (_part(self.state[parameter][name]) for name in MOMENTS)
                weight = part, gradient, mask, first, second
                if pull is None:
                    masked.append((weight, steps[number]))
                else:
                    pulled.append((weight, replace(steps[number], pull=pull)))
            else:
                kept.append(((part, gradient, *packed), steps[number]))
        step_by_kernel(masked)
        step_dense_by_kernel(pulled)
        step_kept_by_kernel(kept)

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


def _fills_memory(parameter: Tensor) -> bool:
    """Return whether the entries of a tensor, or of its part here, lie side by side in some order of dimensions."""
    part = _part(parameter)
    return torch.empty_like(part, device="meta").stride() == part.stride()


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
