"""LossScale: correct the loss of models that ignore `num_items_in_batch`."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

logger = logging.getLogger("nxm_hf")


class LossScale:
    """Find out, with the first batch, if a model ignores `num_items_in_batch`, and correct its loss then.

    Trainer passes `num_items_in_batch` to every model that accepts keyword arguments, and then does not divide the loss
    by the number of accumulation steps. A model that ignores it ends up with gradients that are too large by the
    number of accumulation steps and processes.

    Args:
        trainer: The Trainer whose loss is meant.
        correct: Correct the loss.
        needed: Find `ignores_items` out, although the loss is not corrected: the part of a teacher needs it.
    """

    def __init__(self, trainer: Trainer, correct: bool, needed: bool):
        self._trainer, self._correct = trainer, correct
        self._known = not (correct or needed)
        self.ignores_items = False

    def probe(self, inputs: dict[str, Any]) -> None:
        """Compute the loss of the first batch with two values of `num_items_in_batch`, and compare.

        Args:
            inputs: The batch. Later batches do nothing.
        """
        if self._known:
            return
        self._known = True
        trainer, factor = self._trainer, self._trainer.args.gradient_accumulation_steps * self._trainer.args.world_size
        if factor == 1 or not trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None:
            return
        model = self._model()
        model.eval()
        inputs = trainer._prepare_inputs(inputs)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            self.ignores_items = torch.equal(self._loss(inputs, items=1), self._loss(inputs, items=2))
        if self.ignores_items and self._correct:
            trainer.model_accepts_loss_kwargs = False
            logger.info(
                "%s ignores num_items_in_batch, so its loss would be %d times too large; corrected. "
                "Write fix_loss_scale=False to leave it.",
                type(model).__name__,
                factor,
            )

    def _loss(self, inputs: dict[str, Any], items: int) -> Tensor:
        count = torch.tensor(items, device=self._trainer.args.device)
        loss = self._trainer.compute_loss(self._model(), dict(inputs), num_items_in_batch=count)
        assert isinstance(loss, Tensor)  # without return_outputs=True
        return loss

    def _model(self) -> nn.Module:
        assert self._trainer.model is not None  # Trainer has refused to be made without one
        return self._trainer.model
