"""NxMTrainer: transformers.Trainer with one more argument."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from nxm_hf.config.config import NxMConfig
from nxm_hf.distillation.loss import DistillationConfig
from nxm_hf.distillation.teacher import Teacher
from nxm_hf.layers.plan import resolve
from nxm_hf.methods import Method
from nxm_hf.storage.checkpoints import begin_checkpoint, is_checkpoint, missing_parts, newest_complete
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_record import read_stamp, remove_stamp
from nxm_hf.storage.saving import check_written, write_record
from nxm_hf.storage.verify import verify, verify_targets
from nxm_hf.trainer.callback import NxMCallback
from nxm_hf.trainer.session import Bridge

logger = logging.getLogger("nxm_hf")
SEARCHED = "sparsity."  # what the keys of a hyper-parameter search begin with that are for us


class NxMTrainer(Trainer):
    """`transformers.Trainer`, with one more argument; `evaluate`, `predict` and every save see the sparse weights.

    Args:
        sparsity: an `NxMConfig`, the name of a recipe such as "admm", or a dict. Without it, a model that is sparse
            already keeps its mask.
        teacher: a model, or the directory of one, that the student is to learn from too, with any recipe.
        distillation: how much; a `DistillationConfig`, or a dict of its fields.
        fix_loss_scale: correct the loss of models that ignore `num_items_in_batch`, which a Trainer otherwise makes
            too large by the number of accumulation steps and processes. Never done with the recipe "dense".
        args, kwargs: those of `transformers.Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        sparsity: NxMConfig | str | dict | Method | None = None,
        teacher: torch.nn.Module | str | Path | None = None,
        distillation: DistillationConfig | dict | None = None,
        fix_loss_scale: bool = True,
        **kwargs: Any,
    ):
        if teacher is None and distillation is not None:
            raise ValueError("distillation= needs a teacher; write teacher=MODEL_OR_DIRECTORY, or leave it out.")
        distillation = DistillationConfig.from_any(distillation)
        config = None if sparsity is None else NxMConfig.from_any(sparsity)
        super().__init__(*args, **kwargs)
        if any(isinstance(callback, NxMCallback) for callback in self.callback_handler.callbacks):
            raise ValueError("NxMTrainer does what NxMCallback does; use one of them.")
        self.sparsity = config or _config_of_stamp(self.model)
        if config is not None and read_stamp(self.model) is not None:
            logger.warning("This model is sparse already; training restarts from its weights with %r.", config.recipe)
        if teacher is not None:
            teacher = Teacher(teacher, self.model, distillation, self.processing_class, self.args)
        self._teacher = teacher if distillation.enabled else None
        self._searched_from, self._fix = self.sparsity, fix_loss_scale
        self._bridge = Bridge(self.sparsity, self._teacher)
        self._follow(self.sparsity)
        self._bridge.check(self.args, self.model)

    def _follow(self, config: NxMConfig) -> None:
        """Train by this config from here on."""
        self.sparsity = self._bridge.config = config
        self._fixes = self._fix and not config.is_dense
        self._loss_scale_is_unknown = self._fixes or self._teacher is not None
        self._loss_ignores_items = False
        if self._bridge in self.callback_handler.callbacks:
            self.callback_handler.callbacks.remove(self._bridge)
        if not config.is_dense:
            # First of all callbacks: whoever else looks at the model when training ends is to see what is shipped.
            self.callback_handler.callbacks.insert(0, self._bridge)

    # -- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        if resume_from_checkpoint and not self.sparsity.is_dense:
            resume_from_checkpoint = self._whole_checkpoint(resume_from_checkpoint)
            self._bridge.resume_from = resume_from_checkpoint
        else:
            self._bridge.resume_from = None
        if self.sparsity.is_dense:
            remove_stamp(self.model)  # of a model that was sparse: training takes its zeros away
        if self._bridge.engine is not None:
            self._bridge.engine.release()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _whole_checkpoint(self, which: str | bool) -> str:
        if which is True:
            return newest_complete(self.args.output_dir)
        if missing := missing_parts(which):
            raise ValueError(
                f"{which} is not a whole checkpoint: {', '.join(missing)}. Resume with resume_from_checkpoint=True, "
                "which takes the newest whole one."
            )
        return str(which)

    def training_step(self, model, inputs, *args: Any, **kwargs: Any):
        self._fix_loss_scale(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model, inputs, *args: Any, **kwargs: Any):
        if any(inputs.get(name) is not None for name in self.label_names):
            self._fix_loss_scale(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _fix_loss_scale(self, inputs: dict[str, Any]) -> None:
        """Have the Trainer divide the loss itself, if the model does not; found out with the first batch."""
        if not self._loss_scale_is_unknown:
            return
        self._loss_scale_is_unknown = False
        scaled = self.args.gradient_accumulation_steps * self.args.world_size > 1
        if not scaled or not self.model_accepts_loss_kwargs or self.compute_loss_func is not None:
            return
        self.model.eval()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            one, two = (
                self.compute_loss(
                    self.model, dict(inputs), num_items_in_batch=torch.tensor(items, device=self.args.device)
                )
                for items in (1, 2)
            )
        self._loss_ignores_items = torch.equal(one, two)
        if self._loss_ignores_items and self._fixes:
            self.model_accepts_loss_kwargs = False
            logger.info(
                "%s ignores num_items_in_batch, so that its loss would count %d times; corrected. "
                "fix_loss_scale=False leaves it.",
                type(self.model).__name__, self.args.gradient_accumulation_steps * self.args.world_size,
            )  # fmt: skip

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer; while it trains, with what the teacher says."""
        if self._teacher is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        asked = {**inputs, **self._teacher.distillation.output_flags}
        loss, outputs = super().compute_loss(model, dict(asked), True, num_items_in_batch)  # it may take labels out
        scales = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        items = num_items_in_batch if scales else None
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices and items is not None else 1
        with self.accelerator.autocast():
            part = self._teacher.loss(outputs, asked, None if self._loss_ignores_items else items)
        loss = (1 - self._teacher.distillation.weight) * loss + ranks * part
        return (loss, outputs) if return_outputs else loss

    def _hp_search_setup(self, trial: Any) -> None:
        if self.hp_search_backend is None or trial is None:
            return super()._hp_search_setup(trial)
        space, found = self.hp_space, {}

        def theirs(parameters: dict[str, Any]) -> dict[str, Any]:
            found.update({k.removeprefix(SEARCHED): v for k, v in parameters.items() if k.startswith(SEARCHED)})
            return {key: value for key, value in parameters.items() if not key.startswith(SEARCHED)}

        self.hp_space = lambda trial: theirs(space(trial))
        try:
            super()._hp_search_setup(theirs(trial) if isinstance(trial, dict) else trial)
        finally:
            self.hp_space = space
        self._follow(self._searched_from.replace(**found))

    def _load_best_model(self) -> None:
        if self._bridge.engine is not None:
            self._bridge.engine.warn_if_early()  # while the weights are still those of the last step
        super()._load_best_model()

    # -- every exit shows the deployed weights -------------------------------------------------------------------

    def evaluate(self, *args: Any, view: str | None = None, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; `view="training"` evaluates the weights that training computes with instead."""
        if view not in (None, "deployed", "training"):
            raise ValueError(f'view must be "deployed" or "training"; got {view!r}.')
        outer, self._view = self._view, view or self._view  # of several datasets, each is evaluated from within
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._view = outer

    _view = "deployed"

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        if self._view == "training":
            return super().evaluation_loop(*args, **kwargs)
        with self._bridge.deployed():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.sparsity.is_dense:
            return super().save_model(output_dir, _internal_call=_internal_call)
        folder = Path(output_dir or self.args.output_dir)
        checkpoint = _internal_call and is_checkpoint(output_dir)
        with self._bridge.deployed():
            plan, config = self._to_ship()
            if checkpoint and self.args.should_save:
                begin_checkpoint(folder)
            super().save_model(output_dir, _internal_call=_internal_call)
            if checkpoint and not self.args.save_only_model:
                self._bridge.write_state(self.args, folder)  # all processes meet in it, so before what can fail in one
            if self.args.should_save:
                write_record(folder, config, plan)
                check_written(folder, self.model, plan)

    def _to_ship(self):
        """What is shipped and the config to ship with it, checked before the first byte is written."""
        if self._bridge.engine is not None:
            plan, config = self._bridge.engine.plan, self._bridge.engine.config
        else:
            plan, config = resolve(self.model, self.sparsity), self.sparsity
        report = verify_targets(plan.targets)
        if self._bridge.engine is None and not report.ok:
            raise ValueError(
                "This model is still dense, so nothing was written. Call trainer.train() before you save it."
            )
        report.raise_for_problems()
        config.layers, config.density = plan.layers, report.density
        return plan, config

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if not self.sparsity.is_dense and self.is_world_process_zero():
            plan, config = self._to_ship()
            write_card(self.args.output_dir, config, plan)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._bridge.engine is not None:
            logs.update(self._bridge.engine.metrics())
        super().log(logs, *args, **kwargs)


def _config_of_stamp(model: torch.nn.Module) -> NxMConfig:
    """For a model that is sparse already: keep its mask."""
    stamp = read_stamp(model)
    if stamp is None:
        raise ValueError('NxMTrainer needs sparsity=, as in sparsity=NxMConfig(pattern="2:4", recipe="admm").')
    verify(model).raise_for_problems()
    config = stamp.for_finetuning()
    logger.warning(
        "This model is sparse already (%s); training keeps its mask. Give sparsity= to prune anew.", config.pattern
    )
    return config
