"""Zero updates: whether an optimizer leaves a weight at zero whose gradient and moments are zero.

Most do: a step of AdamW moves such a weight by exactly nothing. Then a frozen mask needs no pass over the weights after
the step. No list of optimizers says which do. Each is tried, with its own settings, on a small weight.
"""

import logging
import math
import operator
from collections import defaultdict
from typing import Any

import torch
import torch.optim.optimizer as torch_hooks
from torch import Tensor
from torch.optim import Optimizer

logger = logging.getLogger("nxm_hf")
SHAPE = (12, 16)
MOST = 64  # trials to remember
STEPS = 3  # the first step of an optimizer differs from the later ones


class ZeroUpdates:
    """Tries whether an optimizer leaves zeros, with the settings of each of its parameter groups.

    A trial holds for the settings of a group, and for learning rates up to its own: a smaller one does less.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._rates: dict[
            Any, tuple[float, float]
        ] = {}  # settings -> highest rate that left zeros, lowest that did not
        self._groups: dict[int, dict[str, Any]] = {}
        self._last: dict[int, tuple[Any, list[Any], Any]] = {}  # of each group: kind, settings, and their key

    def of(self, parameter: Tensor) -> bool:
        """Return True if a step leaves entries of this parameter at +0.0 whose gradient and moments are zero.

        Args:
            parameter: A parameter of the optimizer.
        """
        if not only_hooks_of_one(self._optimizer):
            return False
        group = self._group_of(parameter)
        if group is None:
            return False
        rate, settings = float(group.get("lr") or 0.0), _settings(group)
        kind = (parameter.dtype, parameter.device, parameter.ndim)
        last = self._last.get(id(group))
        if last is None or last[0] != kind or not _identical(last[1], settings):
            last = self._last[id(group)] = kind, settings, (kind, str(settings))
        key = last[2]
        good, bad = self._rates.get(key, (-math.inf, math.inf))
        if good < rate < bad:
            if len(self._rates) >= MOST:
                self._rates.clear()  # settings that change at every step
            leaves = rate >= 0 and self._leaves_zeros(group, parameter)
            good, bad = self._rates[key] = (rate, bad) if leaves else (good, rate)
        return rate <= good

    def _group_of(self, parameter: Tensor) -> dict[str, Any] | None:
        group = self._groups.get(id(parameter))
        if group is None or not any(group is each for each in self._optimizer.param_groups):
            self._groups = {id(each): g for g in self._optimizer.param_groups for each in g["params"]}
            group = self._groups.get(id(parameter))
        return group

    def _leaves_zeros(self, group: dict[str, Any], parameter: Tensor) -> bool:
        try:
            with torch.random.fork_rng(devices=[]):
                return _trial(self._optimizer, group, parameter)
        except (
            Exception
        ) as error:  # an optimizer that cannot be made without its own arguments, or fails on small weights
            logger.debug("%s could not be tried on a small weight: %r", type(self._optimizer).__name__, error)
            return False


def only_hooks_of_one(optimizer: Optimizer) -> bool:
    """Return True if nothing but one engine hooks into the steps of an optimizer.

    Args:
        optimizer: The optimizer, after `StepHooks.attach`.
    """
    own = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    of_all = torch_hooks._global_optimizer_pre_hooks, torch_hooks._global_optimizer_post_hooks
    return all(len(hooks) <= 1 for hooks in own) and not any(of_all)


def _settings(group: dict[str, Any]) -> list[Any]:
    """Return what tells the steps of two groups apart, but for their weights and their learning rate."""
    return [each for pair in group.items() if pair[0] not in ("params", "lr", "initial_lr") for each in pair]


def _identical(some: list[Any], others: list[Any]) -> bool:
    """Return whether two lists hold the same objects, which is seen faster than that they are written the same."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _trial(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> bool:
    """Return whether some steps of a second optimizer of this kind leave all zeros of a small sparse weight."""
    made = torch.Generator().manual_seed(0)

    def numbers() -> Tensor:
        return torch.randn(SHAPE + (1,) * (parameter.ndim - 2), generator=made)

    kept = numbers().abs() > 0.6
    kept[3], kept[:, 5] = False, False  # a row and a column without any
    weight = (numbers() * kept).add_(0.0).to(parameter).requires_grad_()
    twin = type(optimizer).__new__(type(optimizer))
    twin.__setstate__(
        {"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": [{**group, "params": [weight]}]}
    )
    pruned = ~kept.to(parameter.device)
    for _ in range(STEPS):
        weight.grad = (numbers() * kept).to(parameter)  # zeros of both signs
        twin.step()
        zeros = weight.detach()[pruned]
        if zeros.count_nonzero() or zeros.signbit().any() or not moments_are_zero(twin.state[weight], pruned):
            return False
    return True


def moments_are_zero(state: dict[str, Any], where: Tensor) -> bool:
    """Return True if all that an optimizer remembers of single entries is zero.

    Numbers for a whole weight, a row or a column are not of single entries.

    Args:
        state: The optimizer's state of a weight.
        where: True at the entries that are asked for, in the shape of the weight.
    """
    for value in state.values():
        if not isinstance(value, Tensor) or (value.shape != where.shape and value.numel() <= max(where.shape)):
            continue
        if value.shape != where.shape or bool(((value != 0) & where).any()):  # a NaN is not zero
            return False
    return True
