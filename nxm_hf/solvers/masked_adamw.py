"""A step of AdamW on a masked weight: masked gradient, moments, weight and zeros in one pass over memory.

A dense weight whose pruned entries are pulled to zero takes its step in one pass too.

As in `weight_ops`, a kernel does this if a backend has one. It gives the same bits as the form in torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nxm_hf.solvers import cpu
from nxm_hf.solvers.kept_entries import KeptEntries
from nxm_hf.solvers.masked_ops import pruned_part
from nxm_hf.solvers.self_test import FINITE, difficult_numbers, same_bits
from nxm_hf.solvers.weight_ops import keep

ROUNDINGS = range(3)  # the numbers of `adamw_entries.ROUNDINGS`, which only numba can import
Weight = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # a weight, its gradient, its mask and both moments
KeptWeight = tuple[Tensor, Tensor, KeptEntries, Tensor, Tensor]  # the same, with moments of kept entries alone
Kernel = Callable[[Sequence[Any]], None]


@dataclass(frozen=True)
class AdamWStep:
    """The settings of a step of AdamW.

    Args:
        step: The number of the step, from 1 on.
        lr: The learning rate.
        betas: The decay of both moments.
        eps: The number that is added to the root of the second moment.
        weight_decay: The decay of the weight, times the learning rate.
        maximize: Whether the step maximizes the objective.
        pull: A dense weight, times this factor, is added to its gradient where the mask prunes.
    """

    step: float
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    maximize: bool = False
    pull: float = 0.0

    @property
    def has_kernel(self) -> bool:
        """Return True if kernels can take a step with these settings."""
        return 1 - self.betas[0] < 0.5  # otherwise torch averages in another order

    @cached_property
    def numbers(self) -> Tensor:
        """Return the numbers that kernels read, in fp32, rounded as torch's fused AdamW rounds them."""
        first, second = self.betas
        return torch.tensor(
            [
                -1.0 if self.maximize else 1.0,
                1 - self.lr * self.weight_decay,
                1 - first,
                second,
                1 - second,
                math.sqrt(1 - second**self.step),
                self.eps,
                -(self.lr / (1 - first**self.step)),
                self.pull,
            ],
            dtype=torch.float32,
            device="cpu",
        )


def fits_kernel(weight: Tensor, mask: Tensor, *others: Tensor) -> bool:
    """Return whether a kernel supports these tensors and passes its self-test.

    Args:
        weight: The weight.
        mask: Its mask.
        *others: Its gradient, and its moments if they exist.
    """
    tensors = (weight, mask, *others)
    return (
        weight.numel() % cpu.LANES == 0
        and cpu.BACKEND.available(weight)
        and mask.dtype == torch.bool
        and all(each.dtype == torch.float32 for each in (weight, *others))
        and all(each.shape == weight.shape and each.is_contiguous() and each.is_cpu for each in tensors)
        and _kernel() is not None
    )


def step_by_kernel(weights: Sequence[tuple[Weight, AdamWStep]]) -> None:
    """Take a step with each weight by a kernel.

    Args:
        weights: Each weight with its gradient, mask and moments, which `fits_kernel`, and the settings of its step.
            Gradients are only read.
    """
    if not weights:
        return
    kernel = _kernel()
    assert kernel is not None
    _run(kernel, weights)


def can_step_dense() -> bool:
    """Return whether a kernel steps dense weights and pulls their pruned entries to zero, and passes its self-test.

    It takes the weights that `fits_kernel`.
    """
    return cpu.BACKEND.unavailable() is None and _dense_kernel() is not None


def step_dense_by_kernel(weights: Sequence[tuple[Weight, AdamWStep]]) -> None:
    """Take a step with each dense weight, and pull its pruned entries to zero, by a kernel.

    Args:
        weights: As in `step_by_kernel`. No entry of a gradient or a weight is masked.
    """
    if not weights:
        return
    kernel = _dense_kernel()
    assert kernel is not None
    _run(kernel, weights)


def _run(kernel: Kernel, weights: Sequence[tuple[Weight, AdamWStep]]) -> None:
    kernel([(*tensors, step.numbers) for tensors, step in weights])
    for (weight, _, _, first, second), _ in weights:
        for each in (weight, first, second):
            torch.autograd.graph.increment_version(each)  # as torch does for tensors that its own steps change


def can_step_kept() -> bool:
    """Return whether a kernel steps weights with moments of kept entries alone, and passes its self-test.

    It takes the weights that `fits_kernel`, with packed moments.
    """
    return cpu.BACKEND.unavailable() is None and _kept_kernel() is not None


def step_kept_by_kernel(weights: Sequence[tuple[KeptWeight, AdamWStep]]) -> None:
    """Do as `step_by_kernel` does, with moments of kept entries alone.

    Args:
        weights: Each weight with its gradient, its kept entries and its packed moments, and the settings of its step.
    """
    if not weights:
        return
    kernel = _kept_kernel()
    assert kernel is not None
    kernel([(kept, (w, gradient, *moments, step.numbers)) for (w, gradient, kept, *moments), step in weights])
    for (weight, *_), _ in weights:
        torch.autograd.graph.increment_version(weight)


def step_in_torch(weight: Weight, step: AdamWStep) -> None:
    """Take a step with a weight in torch.

    Args:
        weight: The weight with its gradient, mask and moments. The gradient is only read.
        step: The settings of the step.
    """
    matrix, gradient, mask, first, second = weight
    _step_of_torch(matrix, gradient.masked_fill(~mask, 0.0), first, second, step)
    keep(matrix, mask)


def step_dense_in_torch(weight: Weight, step: AdamWStep) -> None:
    """Take a step with a dense weight in torch, and pull its pruned entries to zero.

    Args:
        weight: The weight with its gradient, mask and moments. The gradient is only read.
        step: The settings of the step.
    """
    matrix, gradient, mask, first, second = weight
    pulled = gradient.add(pruned_part(matrix, mask), alpha=step.pull)
    _step_of_torch(matrix, pulled, first, second, step)


def _step_of_torch(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: AdamWStep) -> None:
    adamw(
        [weight],
        [gradient],
        [first],
        [second],
        [],
        [torch.tensor(step.step - 1.0, device=weight.device)],
        fused=True,
        amsgrad=False,
        beta1=step.betas[0],
        beta2=step.betas[1],
        lr=step.lr,
        weight_decay=step.weight_decay,
        eps=step.eps,
        maximize=step.maximize,
    )


def _kernel() -> Kernel | None:
    """Return the kernel that rounds like torch on this machine, or None if there is none."""
    rounding = _rounding()
    return None if rounding is None else partial(cpu.BACKEND.kernels.adamw, rounding)


def _rounding() -> int | None:
    for rounding in ROUNDINGS:
        run = partial(cpu.BACKEND.kernels.adamw, rounding)
        name = f"step of AdamW in rounding {rounding}"
        if cpu.BACKEND.passes(name, _kernel_is_right, run, warns=rounding == ROUNDINGS[-1]):
            return rounding
    return None


def _dense_kernel() -> Kernel | None:
    """Return the kernel for dense weights that rounds like torch, or None if there is none."""
    rounding = _rounding()
    if rounding is None:
        return None
    run = partial(cpu.BACKEND.kernels.adamw, rounding, pulls=True)
    name = f"step of AdamW that pulls to zero, in rounding {rounding}"
    return run if cpu.BACKEND.passes(name, _dense_kernel_is_right, run) else None


def _kept_kernel() -> Kernel | None:
    """Return the kernel for packed moments that rounds like torch, or None if there is none."""
    rounding = _rounding()
    if rounding is None or not cpu.BACKEND.kernels.can_gather():
        return None
    run = partial(cpu.BACKEND.kernels.adamw_of_kept, rounding)
    name = f"step of AdamW with moments of kept weights in rounding {rounding}"
    return run if cpu.BACKEND.passes(name, _kept_kernel_is_right, run) else None


def _kernel_is_right(run: Kernel) -> bool:
    """Return whether a kernel gives the same bits as the form in torch, in steps with several settings."""
    return _steps_agree(run, step_in_torch)


def _dense_kernel_is_right(run: Kernel) -> bool:
    """Return whether a kernel for dense weights gives the same bits as the form in torch."""
    return _steps_agree(run, step_dense_in_torch)


def _steps_agree(run: Kernel, in_torch: Callable[[Weight, AdamWStep], None]) -> bool:
    for ours, mask, steps in _trials():
        theirs = [each.clone() for each in ours]
        for gradient, step in steps:
            run([(ours[0], gradient, mask, *ours[1:], step.numbers)])
            in_torch((theirs[0], gradient, mask, theirs[1], theirs[2]), step)
            if not all(map(same_bits, ours, theirs)):
                return False
    return True


def _kept_kernel_is_right(run: Kernel) -> bool:
    """Return whether a kernel for packed moments gives the same bits as the form in torch."""
    for ours, mask, steps in _trials():
        for moment in ours[1:]:
            moment.masked_fill_(~mask, 0.0)
        theirs, kept = [each.clone() for each in ours], KeptEntries.of(mask)
        packed = [kept.pack(moment) for moment in ours[1:]]
        for gradient, step in steps:
            run([(kept, (ours[0], gradient, *packed, step.numbers))])
            step_in_torch((theirs[0], gradient, mask, theirs[1], theirs[2]), step)
            if not all(map(same_bits, [ours[0], *map(kept.unpack, packed)], theirs)):
                return False
    return True


def _trials() -> Iterator[tuple[list[Tensor], Tensor, list[tuple[Tensor, AdamWStep]]]]:
    """Yield a weight with its moments, a mask, and gradients with the settings of their steps."""
    count = 4112
    for seed, maximize in enumerate((False, True)):
        weight, first, second, *gradients = (
            difficult_numbers(count, torch.float32, "cpu", 10 * seed + i, FINITE) for i in range(6)
        )
        mask = difficult_numbers(count, torch.float32, "cpu", 10 * seed + 7, ()) > 0
        steps = [
            (gradient, AdamWStep(number, 0.1**number, (0.9, 0.95 + 0.049 * seed), 1e-8, 0.1, maximize, 0.3))
            for number, gradient in enumerate(gradients, start=1 + 40 * seed)
        ]
        yield [weight, first, second.abs()], mask, steps
