"""The optimizer that a Trainer takes of itself: `nxm_hf.AdamW` in place of torch's fused AdamW."""

from collections.abc import Callable
from typing import Any

import torch

from nxm_hf.engine.adamw import AdamW


class OptimizerChoice:
    """Stand for `get_optimizer_cls_and_kwargs` in a class of Trainers, and choose `nxm_hf.AdamW` for fused AdamW.

    The two give the same bits. Trainer has the function as a static method, and the Trainers of sentence-transformers
    as a method that reads the Trainer. So it is looked up behind the class on each access, as whatever it is there.

    Example:
        >>> from transformers import Trainer
        >>> class Sparse(Trainer):
        ...     get_optimizer_cls_and_kwargs = OptimizerChoice()
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._class, self._name = owner, name

    def __get__(self, trainer: Any, owner: type) -> Callable[..., tuple[Any, dict[str, Any]]]:
        """Return the function of the class behind this one, with the other optimizer.

        Args:
            trainer: The Trainer, or None on access by the class.
            owner: The class of the Trainer.
        """
        of_host = getattr(super(self._class, owner if trainer is None else trainer), self._name)

        def get_optimizer_cls_and_kwargs(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            """Return what Trainer does, but `nxm_hf.AdamW` for torch's fused AdamW: it gives the same bits."""
            optimizer, settings = of_host(*args, **kwargs)
            return AdamW if optimizer is torch.optim.AdamW and settings.get("fused") else optimizer, settings

        return get_optimizer_cls_and_kwargs
