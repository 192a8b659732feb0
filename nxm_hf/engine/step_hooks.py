"""The bracket around `optimizer.step()`: when methods act, and what the clock says then."""

from collections.abc import Callable

import torch

from nxm_hf.engine.optimizer_state import check_optimizer, is_adaptive, loss_scale, overflowed
from nxm_hf.methods.schedules import Clock


class Bracket:
    """Calls `act("before_step", clock)` just before a step is taken and `act("after_step", clock)` just after it.

    It is the optimizer's own pair of hooks: tight around the step, after clipping and unscaling, invisible to other
    callbacks, and not called at a step that is skipped. `step` counts the steps done; whoever counts skipped ones too
    may set it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total: int,
        epoch: int | None,
        act: Callable[[str, Clock], None],
    ):
        check_optimizer(optimizer)
        if bracket_of(optimizer) is not None:
            raise ValueError("This optimizer has an engine already; call its release() or finish() first.")
        self.optimizer, self.total, self.epoch, self._act = optimizer, total, epoch, act
        self.step = self.last = 0  # steps done, and those done when methods last acted
        self._skipping = False
        self._hooks: tuple = ()

    @property
    def owner(self) -> object:
        """Whose method it is that acts."""
        return self._act.__self__

    def close(self) -> None:
        """Put the bracket around every step from here on."""
        self._hooks = (
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        )

    def open(self) -> None:
        """Take it away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()

    def clock(self, ahead: int = 0) -> Clock:
        """Where training stands, or will stand some steps ahead."""
        return Clock(
            step=self.step + ahead,
            total=self.total,
            since=self.last,
            epoch=self.epoch,
            adaptive=is_adaptive(self.optimizer),
            loss_scale=loss_scale(self.optimizer),
        )

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if any(value is not None for value in (*args[1:], kwargs.get("closure"))):
            raise ValueError("optimizer.step(closure) computes gradients inside the step; call step() without it.")
        self._skipping = overflowed(optimizer)
        if not self._skipping:
            self._act("before_step", self.clock())

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if not self._skipping:
            self._act("after_step", self.clock(ahead=1))
            self.step = self.last = self.step + 1


def bracket_of(optimizer: torch.optim.Optimizer) -> Bracket | None:
    """The bracket around an optimizer's steps, if there is one."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    owners = (getattr(hook, "__self__", None) for hook in hooks)
    return next((owner for owner in owners if isinstance(owner, Bracket)), None)
