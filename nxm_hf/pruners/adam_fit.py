"""Fit the kept weights of a layer to the outputs of the dense layer by Adam, on a sample of inputs."""

import torch
from torch import Tensor

from nxm_hf.pruners.base import PrunedWeight, apply_mask

WEIGHT_LR, BIAS_LR = 1e-3, 1e-2


def adam_fit(
    weight: Tensor, bias: Tensor | None, start: PrunedWeight, sample: Tensor, steps: int, batch: int, seed: int
) -> PrunedWeight:
    """Minimise the mean squared error of the outputs by Adam, and apply the mask after each step.

    Args:
        weight: The dense weight, [out, in].
        bias: The dense layer's bias, or None to leave the bias out of the fit.
        start: The weight to start from, and the mask.
        sample: Inputs of the layer, [tokens, in].
        steps: The number of steps.
        batch: Tokens per step.
        seed: The seed of the minibatches.

    Returns:
        The fitted weight and bias; the mask is that of `start`.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = sample.to(weight.dtype)
    fitted = start.weight.clone()
    shift = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    groups = [{"params": [fitted], "lr": WEIGHT_LR}, {"params": [shift], "lr": BIAS_LR}]
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        x = sample[torch.randint(len(sample), (batch,), generator=generator)]
        error = x @ (fitted - weight).T + shift  # [batch, out]
        fitted.grad = error.T @ x * (2 / error.numel())
        shift.grad = error.sum(0) * (2 / error.numel()) if bias is not None else None
        optimizer.step()
        fitted.mul_(start.mask)
    pruned = apply_mask(fitted, start.mask)
    pruned.bias = bias + shift if bias is not None else None
    return pruned
