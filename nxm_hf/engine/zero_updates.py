"""Zero updates: whether an optimizer leaves a weight at zero whose gradient and moments are zero.

Most optimizers do: a step of AdamW changes such an entry by exactly 0. Then a frozen mask needs no pass over the
weights after the step. Moments of pruned entries can be set to zero if the optimizer updates each entry independently.
AdamW does; LAMB does not, because it divides by the norm of the whole update. There is no list of optimizers. Each one
is tried, with its own settings, on a small weight.
"""

import logging
import math
import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.optim.optimizer as torch_hooks
from torch import Tensor
from torch.optim import Optimizer

from nxm_hf.engine.optimizer_state import known_moments

logger = logging.getLogger("nxm_hf")
SHAPE = (12, 16)
MOST = 64  # the largest number of trials that are remembered
STEPS = 3  # the first step of an optimizer differs from the later ones
RATE = 0.01  # the learning rate of a trial that counts for all learning rates


class ZeroUpdates:
    """Tries whether an optimizer leaves zeros, with the settings of each of its parameter groups.

    A trial holds for the settings of a group, and for learning rates up to that of the trial.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._rates: dict[
            Any, tuple[float, float]
        ] = {}  # settings -> highest rate that left zeros, lowest that did not
        self._apart: dict[Any, bool] = {}  # settings -> whether entries are trained apart
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
            leaves = self._try(_leaves_zeros, group, parameter)
            good, bad = self._rates[key] = (rate, bad) if leaves else (good, rate)
        return rate <= good

    def apart(self, parameter: Tensor) -> bool:
        """Return True if moments of pruned entries do not influence the step of kept entries.

        Args:
            parameter: A parameter of the optimizer; it may be sharded.
        """
        group = self._group_of(parameter) if only_hooks_of_one(self._optimizer) else None
        if group is None:
            return False
        key = parameter.dtype, parameter.device, parameter.ndim, str(_settings(group))
        if key not in self._apart:
            self._apart[key] = self._try(_trains_apart, group, parameter)
        return self._apart[key]

    def _group_of(self, parameter: Tensor) -> dict[str, Any] | None:
        group = self._groups.get(id(parameter))
        if group is None or not any(group is each for each in self._optimizer.param_groups):
            self._groups = {id(each): g for g in self._optimizer.param_groups for each in g["params"]}
            group = self._groups.get(id(parameter))
        return group

    def _try(
        self, trial: Callable[[Optimizer, dict[str, Any], Tensor], bool], group: dict[str, Any], parameter: Tensor
    ) -> bool:
        try:
            with torch.random.fork_rng(devices=[]):
                return trial(self._optimizer, group, parameter)
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
    """Return the settings of a group that a step depends on, except its weights and its learning rate."""
    return [each for pair in group.items() if pair[0] not in ("params", "lr", "initial_lr") for each in pair]


def _identical(some: list[Any], others: list[Any]) -> bool:
    """Return whether two lists hold the same objects. This is faster than comparing them as text."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


class _Trial:
    """A small sparse weight, and a second optimizer of the same kind that trains it alone.

    Args:
        optimizer: The optimizer.
        group: The parameter group whose settings count.
        parameter: The parameter whose dtype, device and number of dimensions count.
    """

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], parameter: Tensor):
        self._made = torch.Generator().manual_seed(0)
        self._to: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
        self._shape = SHAPE + (1,) * (parameter.ndim - 2)
        self.kept = self.numbers().abs() > 0.6
        self.kept[3], self.kept[:, 5] = False, False  # a row and a column without any
        self.weight = (self.numbers() * self.kept).add_(0.0).to(**self._to).requires_grad_()
        self.pruned = ~self.kept.to(parameter.device)
        self.twin = type(optimizer).__new__(type(optimizer))
        groups = [{**group, "params": [self.weight]}]
        self.twin.__setstate__({"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups})

    def numbers(self) -> Tensor:
        return torch.randn(self._shape, generator=self._made)

    @property
    def state(self) -> dict[str, Any]:
        return self.twin.state[self.weight]

    def step(self, masked: bool = True) -> None:
        """Take a step. A masked gradient has zeros of both signs where the weight is pruned."""
        gradient = self.numbers()
        self.weight.grad = (gradient * self.kept if masked else gradient).to(**self._to)
        self.twin.step()


def _leaves_zeros(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> bool:
    """Return whether some steps leave all zeros of a sparse weight."""
    trial = _Trial(optimizer, group, parameter)
    for _ in range(STEPS):
        trial.step()
        zeros = trial.weight.detach()[trial.pruned]
        if zeros.count_nonzero() or zeros.signbit().any() or not moments_are_zero(trial.state, trial.pruned):
            return False
    return True


@torch.no_grad()
def _trains_apart(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> bool:
    """Return whether kept entries end the same if, after dense steps, the moments of pruned entries are cleared."""
    ends = []
    for clears in (False, True):
        trial = _Trial(optimizer, {**group, "lr": RATE}, parameter)
        for number in range(2 * STEPS):
            trial.step(masked=number >= STEPS)
            if number >= STEPS - 1:
                trial.weight.masked_fill_(trial.pruned, 0.0)
            if clears and number == STEPS - 1:
                for moment in known_moments(trial.state):
                    moment.masked_fill_(trial.pruned, 0.0)
        ends.append(trial.weight[~trial.pruned])
    return torch.equal(*ends) and torch.equal(*(end.signbit() for end in ends))


def moments_are_zero(state: dict[str, Any], where: Tensor) -> bool:
    """Return True if the per-entry state of an optimizer is zero at some entries.

    State for a whole weight, a row or a column is not per entry, and is not checked.

    Args:
        state: The optimizer's state of a weight.
        where: True at the entries to check, in the shape of the weight.
    """
    for value in state.values():
        if not isinstance(value, Tensor) or (value.shape != where.shape and value.numel() <= max(where.shape)):
            continue
        if value.shape != where.shape or bool(((value != 0) & where).any()):  # a NaN is not zero
            return False
    return True
