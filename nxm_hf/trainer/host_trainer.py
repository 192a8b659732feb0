"""The Trainer that an NxMCallback is in: its trackers get the sparsity, and its card keeps the section.

A Trainer does not pass itself to its callbacks. Its trackers report before any callback of a user, and it writes the
card without an event. So the callback looks for it in the calling frames.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from nxm_hf import recipes
from nxm_hf.config import NxMConfig
from nxm_hf.layers.modules import unwrap

PREFIX = "sparsity."  # as in a hyper-parameter search


def find_trainer() -> Trainer | None:
    """Return the Trainer that calls, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(owner := frame.f_locals.get("self"), Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return None


def show_parameters(model: nn.Module, config: NxMConfig) -> None:
    """Add the parameters of the sparsity to the model's config, from which trackers read them when training begins.

    Args:
        model: The model.
        config: What to prune and how.
    """
    for key, value in tracker_parameters(config).items():
        if (model_config := getattr(unwrap(model), "config", None)) is not None:
            setattr(model_config, key, value)


def hide_parameters(model: nn.Module) -> None:
    """Remove from the model's config what `show_parameters` added, so that it is not saved.

    Args:
        model: The model.
    """
    model_config = getattr(unwrap(model), "config", None)
    for key in [key for key in vars(model_config) if key.startswith(PREFIX)] if model_config is not None else ():
        delattr(model_config, key)


def tracker_parameters(config: NxMConfig) -> dict[str, Any]:
    """Return the recipe, the pattern and all settings, defaults included, under names such as "sparsity.rho".

    Args:
        config: What to prune and how.

    Example:
        >>> tracker_parameters(NxMConfig("ste", warmup=0.1))["sparsity.grad_scale"]
        1.0
    """
    payload = config.to_dict()
    name = payload["recipe"]
    settings = {**(recipes.settings(name) if name in recipes.names() else {}), **payload["settings"]}
    warmup, settle = config.phases
    described = {"recipe": name, "pattern": payload["pattern"], "warmup": warmup, "settle": settle, **settings}
    return {f"{PREFIX}{key}": value for key, value in described.items()}


class EarlyCallback(TrainerCallback):
    """Stand before the trackers of a Trainer, and give them the parameters and the metrics of an NxMCallback.

    Args:
        owner: The NxMCallback.
        handler: The callbacks of its Trainer.
        config: Returns the config of the training.
        metrics: Returns the metrics of the engine; an empty dict before the first training.
    """

    def __init__(
        self,
        owner: TrainerCallback,
        handler: CallbackHandler,
        config: Callable[[], NxMConfig],
        metrics: Callable[[], dict[str, float]],
    ):
        self._owner, self._handler, self._config, self._metrics = owner, handler, config, metrics

    def attach(self) -> None:
        """Take the first place. The event that is under way goes on with the callbacks that it began with."""
        others = [each for each in self._handler.callbacks if not isinstance(each, EarlyCallback)]
        self._handler.callbacks = [self, *others]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._owner in self._handler.callbacks:
            show_parameters(kwargs["model"], self._config())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self._owner in self._handler.callbacks:
            logs.update(self._metrics())


class CardHook:
    """Stand in for the `create_model_card` of one Trainer, which writes README.md anew, and add the section after it.

    Args:
        trainer: The Trainer.
        write_section: Writes the section.
    """

    def __init__(self, trainer: Trainer, write_section: Callable[[], None]):
        self._trainer, self._write_section = trainer, write_section
        create: Callable[..., Any] = trainer.create_model_card
        if isinstance(create, CardHook):  # that of an earlier callback
            create = create._create
        self._create: Callable[..., Any] = create

    def attach(self) -> None:
        """Take the place of the method."""
        self._trainer.create_model_card = self  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Create the card as the Trainer does, then add the section.

        Args:
            *args: As in the Trainer.
            **kwargs: As in the Trainer.
        """
        self._create(*args, **kwargs)
        if self._trainer.is_world_process_zero():
            self._write_section()
