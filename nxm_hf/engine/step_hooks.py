"""Step hooks: call a handler just before and just after `optimizer.step()`, and keep count of the steps."""

import logging
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch.optim import Optimizer

from nxm_hf.engine.optimizer_state import check_optimizer, is_adaptive, loss_scale, overflowed
from nxm_hf.methods.schedules import Clock

logger = logging.getLogger("nxm_hf")


class StepHandler(Protocol):
    """An object that `StepHooks` calls at each step that is taken."""

    def before_step(self, clock: Clock) -> None:
        """Act before the optimizer updates the weights."""

    def after_step(self, clock: Clock) -> None:
        """Act after the optimizer has updated the weights."""


class StepHooks:
    """Call a handler around every step of an optimizer.

    The hooks are the optimizer's own. They run after gradient clipping and unscaling, and other callbacks do not see
    them. A step that a GradScaler skips calls nothing.

    Args:
        optimizer: The optimizer, without accelerate's wrapper.
        total_steps: Number of steps of the whole training.
        steps_per_epoch: Number of steps per epoch, or None if unknown.
        handler: The object to call.

    Raises:
        ValueError: If the optimizer is not supported, or has hooks of another engine.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, steps_per_epoch: int | None, handler: StepHandler):
        check_optimizer(optimizer)
        if hooks_of(optimizer) is not None:
            raise ValueError("This optimizer has an engine already; call its release() or finish() first.")
        self.optimizer, self.handler = optimizer, handler
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.step = 0  # steps done; a Trainer, which counts skipped steps too, sets it
        self.last = 0  # value of `step` after the last step that called the handler
        self._skipping = self._warned = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Install the hooks: from here on every step calls the handler."""
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        _ATTACHED[self.optimizer] = ref(self)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        _ATTACHED.pop(self.optimizer, None)

    def clock(self, ahead: int = 0) -> Clock:
        """Return where training stands.

        Args:
            ahead: Number of steps to look ahead.

        Returns:
            The clock that methods see.
        """
        return Clock(
            step=self.step + ahead,
            total=self.total_steps,
            since=self.last,
            epoch=self.steps_per_epoch,
            adaptive=is_adaptive(self.optimizer),
            loss_scale=loss_scale(self.optimizer),
        )

    def _before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if any(value is not None for value in (*args[1:], kwargs.get("closure"))):
            raise ValueError("optimizer.step(closure) computes gradients inside the step; call step() without it.")
        if self.step >= self.total_steps and not self._warned:
            self._warned = True
            logger.warning(
                "Step %d comes after the last one of total_steps=%d: the recipe has ended. Give attach the number of "
                "optimizer steps of the whole training.",
                self.step + 1,
                self.total_steps,
            )
        self._skipping = overflowed(optimizer)
        if not self._skipping:
            self.handler.before_step(self.clock())

    def _after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if not self._skipping:
            self.handler.after_step(self.clock(ahead=1))
            self.step = self.last = self.step + 1


# The optimizer's own hook list keeps the StepHooks alive. A strong reference here would keep both alive for good.
_ATTACHED: WeakKeyDictionary[Optimizer, ReferenceType[StepHooks]] = WeakKeyDictionary()


def hooks_of(optimizer: Optimizer) -> StepHooks | None:
    """Return the hooks that are attached to an optimizer.

    Args:
        optimizer: The optimizer, without accelerate's wrapper.

    Returns:
        The hooks, or None if there are none.
    """
    reference = _ATTACHED.get(optimizer)
    return None if reference is None else reference()


def attached_handlers() -> list[StepHandler]:
    """Return the handlers of all hooks that are attached to an optimizer now."""
    hooks = [reference() for reference in [*_ATTACHED.values()]]
    return [each.handler for each in hooks if each is not None]
