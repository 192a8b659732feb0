"""Reconstruction of a pruned block or model: its weights are fitted so that it computes what the dense one did."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers.utils.logging import tqdm

from nxm_hf.layers.modules import is_linear
from nxm_hf.layers.plan import Target
from nxm_hf.pruning.input_statistics import token_rows
from nxm_hf.settings import at_least_one, at_least_zero, one_of

logger = logging.getLogger("nxm_hf")
SCOPES = ("block", "model")
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """The settings of the fit of pruned weights to the outputs of the dense model, with their masks held.

    Args:
        steps: The number of steps of Adam. Each step reads one calibration batch.
        learning_rate: The learning rate of Adam at the first step, as a share of the root mean square of the kept
            weights. It falls to zero along a straight line.
        seed: The seed of the order of the batches.
        scope: "block" to fit each block to the output of the dense block, just after its layers are pruned; "model" to
            fit all blocks together to the output of the dense model, after all are pruned.
    """

    steps: int = 300
    learning_rate: float = 0.01
    seed: int = 0
    scope: str = "block"

    def __post_init__(self) -> None:
        at_least_one("reconstruct", "steps", self.steps, example=300)
        if not at_least_zero("reconstruct", "learning_rate", self.learning_rate, example=0.01):
            raise ValueError("reconstruct needs a learning_rate above 0; got 0. Write learning_rate=0.01.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed of reconstruct must be a whole number; got {self.seed!r}. Write seed=0.")
        one_of("reconstruct", "scope", self.scope, SCOPES)

    @classmethod
    def of(cls, argument: "str | Mapping[str, Any]") -> "Reconstruction | None":
        """Read the argument `reconstruct` of `prune`.

        Args:
            argument: "none", "block", "model", or a mapping of settings, such as `{"scope": "model", "steps": 600}`.

        Returns:
            The settings; None for "none".

        Raises:
            ValueError: If the argument or a setting is wrong.

        >>> Reconstruction.of({"steps": 600})
        Reconstruction(steps=600, learning_rate=0.01, seed=0, scope='block')
        """
        if isinstance(argument, Mapping):
            names = [field.name for field in fields(cls)]
            if unknown := [str(name) for name in argument if name not in names]:
                raise ValueError(f"reconstruct has no setting {unknown[0]!r}. It has {', '.join(names)}.")
            return cls(**argument)
        if argument not in ("none", *SCOPES):
            raise ValueError(
                f'reconstruct must be "none", "block", "model" or a mapping of settings; got {argument!r}. Write '
                'reconstruct="block".'
            )
        return None if argument == "none" else cls(scope=argument)


@dataclass(frozen=True)
class BlockCall:
    """One call of a block with calibration data, in memory of the CPU.

    Args:
        args: The positional arguments.
        kwargs: The named arguments.
        target: The hidden states that the dense block returned.
        mask: True for tokens, [batch, length]; None if all positions are tokens.
    """

    args: tuple
    kwargs: dict[str, Any]
    target: Tensor
    mask: Tensor | None

    def squared_error(self, block: nn.Module, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """Return the squared error of the block's outputs with other weights, and the square of the target.

        Args:
            block: The block.
            tensors: Its parameters and buffers, in fp32, by their names in the block.

        Returns:
            Two sums over the tokens.
        """
        device = next(iter(tensors.values())).device
        args, kwargs = tree_map_only(Tensor, lambda tensor: _in_fp32(tensor.to(device)), (self.args, self.kwargs))
        output = hidden_states(functional_call(block, tensors, args, kwargs))
        found, _ = token_rows(output, self.mask)
        wanted, _ = token_rows(self.target.to(device, output.dtype), self.mask)
        return (found - wanted).square().sum(), wanted.square().sum()


def copied_arguments(compute: partial) -> tuple[tuple, dict[str, Any]]:
    """Copy the arguments of a call into memory of the CPU.

    Args:
        compute: The forward of the block with its arguments.

    Returns:
        The positional and the named arguments.
    """
    args, kwargs = tree_map_only(Tensor, _to_cpu, (compute.args, compute.keywords))
    return args, kwargs


def hidden_states(output: Any) -> Tensor:
    """Return the first floating-point tensor in the output of a block or model, other than a loss.

    Args:
        output: A tensor, or a structure of tensors.
    """
    tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return next(tensor for tensor in tensors if tensor.is_floating_point() and tensor.dim())


def dense_states(output: Any) -> Tensor:
    """Return a copy of a block's hidden states in memory of the CPU.

    Args:
        output: The output of the block.
    """
    return _to_cpu(hidden_states(output))


def trained_parameters(model: nn.Module, part: nn.Module, targets: Sequence[Target]) -> set[int]:
    """Return which parameters of a part of a model are trained, by identity.

    These are the pruned weights with their biases, and the vectors of modules without a matrix, such as norms.
    Parameters that are shared with a module outside the part are left as they are.

    Args:
        model: The model.
        part: A block, or the base model.
        targets: The pruned layers of the part.
    """
    inside = set(part.modules())
    outside = {id(p) for module in model.modules() if module not in inside for p in module.parameters(recurse=False)}
    vectors = [p for m in inside if not is_linear(m) for p in m.parameters(recurse=False) if p.dim() == 1]
    own = [p for target in targets for p in (target.layer.weight, target.layer.bias) if p is not None]
    return {id(parameter) for parameter in [*own, *vectors]} - outside


@dataclass(frozen=True)
class Fitted:
    """A block after reconstruction.

    Args:
        tensors: The new values of the trained parameters, by their names in the block.
        before: The squared error of the block's outputs before, as a share of the dense block's outputs.
        after: The error afterwards.
    """

    tensors: Tensors
    before: float
    after: float


def fit_block(
    block: nn.Module, start: Tensors, masks: Tensors, calls: Sequence[BlockCall], settings: Reconstruction
) -> Fitted:
    """Fit parameters of a block to the outputs of the dense block by Adam. The block itself is not changed.

    Args:
        block: The block, in evaluation mode.
        start: The parameters to train, by their names in the block; pruned weights among them.
        masks: True where a pruned weight is kept, for each of these.
        calls: The calls of the block with the calibration data; at least one.
        settings: The number of steps, and so on.

    Returns:
        The fitted parameters in their own types. If the fit does not lower the error, these are the ones it began with.
    """
    state = [*block.named_parameters(), *block.named_buffers()]
    tensors = {name: _in_fp32(tensor.detach()) for name, tensor in state} | {
        name: _in_fp32(tensor.detach()).clone() for name, tensor in start.items()
    }
    before = _error(block, tensors, calls)
    _train(block, tensors, {name: tensors[name] for name in start}, masks, calls, settings)
    after = _error(block, tensors, calls)
    fitted = {name: tensors[name].detach().to(tensor.dtype) for name, tensor in start.items()}
    for name in masks:
        fitted[name] += 0.0  # turns a -0.0 of rounding into +0.0
    if after < before and all(bool(tensor.isfinite().all()) for tensor in fitted.values()):
        return Fitted(fitted, before, after)
    return Fitted(dict(start), before, before)


@torch.enable_grad()
def _train(
    block: nn.Module,
    tensors: Tensors,
    trained: Tensors,
    masks: Tensors,
    calls: Sequence[BlockCall],
    settings: Reconstruction,
) -> None:
    """Train parameters in place."""
    for tensor in trained.values():
        tensor.requires_grad_()
    kept = torch.cat([trained[name].detach()[mask] for name, mask in masks.items()])
    scale = float(kept.square().mean().sqrt())
    whole_model = settings.scope == "model"
    fused = whole_model or None  # several times as fast on many weights; its rounding differs
    optimizer = torch.optim.Adam(trained.values(), lr=settings.learning_rate * scale, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    # Of blocks, "Pruning blocks" is the progress.
    for _ in tqdm(range(settings.steps), desc="Fitting the model", dynamic_ncols=True, disable=not whole_model):
        order = order or torch.randperm(len(calls), generator=generator).tolist()
        lost, whole = calls[order.pop()].squared_error(block, tensors)
        loss = lost / whole.clamp(min=torch.finfo(whole.dtype).tiny)
        if not (loss.requires_grad and bool(loss.detach().isfinite())):
            break
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            if (gradient := trained[name].grad) is not None:
                gradient.mul_(mask)
        optimizer.step()
        schedule.step()
    for tensor in trained.values():
        tensor.requires_grad_(False)


@torch.no_grad()
def _error(block: nn.Module, tensors: Tensors, calls: Sequence[BlockCall]) -> float:
    """Return the squared error of the block's outputs over all calls, as a share of the dense block's outputs."""
    sums = torch.stack([torch.stack(call.squared_error(block, tensors)).double() for call in calls]).sum(0)
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _in_fp32(tensor: Tensor) -> Tensor:
    """Return a tensor in fp32 if it has floating-point numbers of fewer bits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
