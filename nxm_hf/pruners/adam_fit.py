"""Descent: the kept weights of a layer fitted to the outputs of the dense one by Adam, on a sample of inputs."""

import torch
from torch import Tensor

from nxm_hf.pruners.base import Pruned, masked

WEIGHT_RATE, BIAS_RATE = 1e-3, 1e-2


def descend(
    weight: Tensor, bias: Tensor | None, start: Pruned, sample: Tensor, steps: int, batch: int, seed: int
) -> Pruned:
    """`steps` steps of Adam on the mean squared error, with the mask put on again after each."""
    noise = torch.Generator().manual_seed(seed)
    sample = sample.to(weight.dtype)
    found = start.weight.clone()
    shift = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    groups = [{"params": [found], "lr": WEIGHT_RATE}, {"params": [shift], "lr": BIAS_RATE}]
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        x = sample[torch.randint(len(sample), (batch,), generator=noise)]
        off = x @ (found - weight).T + shift  # [batch, out]
        found.grad = off.T @ x * (2 / off.numel())
        shift.grad = off.sum(0) * (2 / off.numel()) if bias is not None else None
        optimizer.step()
        found.mul_(start.mask)
    result = masked(found, start.mask)
    result.bias = bias + shift if bias is not None else None
    return result
