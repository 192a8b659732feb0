"""NxMTrainer: `transformers.Trainer` with sparsity."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    EvalPrediction,
    FeatureExtractionMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.image_processing_utils import BaseImageProcessor

from nxm_hf.config import NxMConfig
from nxm_hf.distillation import DistillationConfig
from nxm_hf.distillation.teacher import Teacher
from nxm_hf.engine import Engine
from nxm_hf.methods import Method
from nxm_hf.storage.checkpoints import begin_checkpoint, checkpoint_to_resume, is_checkpoint
from nxm_hf.storage.manifest import record_model
from nxm_hf.storage.model_card import write_card
from nxm_hf.storage.model_record import remove_record
from nxm_hf.storage.packed_directory import pack_in_place
from nxm_hf.storage.replacing import replaced
from nxm_hf.storage.same_model import fingerprints
from nxm_hf.storage.saving import bytes_of, check_written, write_record
from nxm_hf.trainer.arguments import check_arguments
from nxm_hf.trainer.callback import NxMCallback
from nxm_hf.trainer.frozen_base import config_for
from nxm_hf.trainer.loss_scale import LossScale
from nxm_hf.trainer.optimizer_choice import OptimizerChoice
from nxm_hf.trainer.session import SessionCallback, SparseTrainingSession
from nxm_hf.trainer.whole_checkpoints import WholeCheckpoints

logger = logging.getLogger("nxm_hf")
SEARCH_PREFIX = "sparsity."  # keys of a hyper-parameter search that begin so change the recipe


class NxMTrainer(WholeCheckpoints):
    """Train with `transformers.Trainer`, and make the model sparse while it trains.

    `evaluate`, `predict` and every save see the deployed, sparse weights. All other arguments, and everything else, are
    those of `transformers.Trainer`. To combine it with another Trainer, put it first:
    `class SparseSFTTrainer(NxMTrainer, SFTTrainer): pass`.

    Args:
        model: As in Trainer.
        args: As in Trainer.
        data_collator: As in Trainer.
        train_dataset: As in Trainer.
        eval_dataset: As in Trainer.
        processing_class: As in Trainer.
        model_init: As in Trainer.
        compute_loss_func: As in Trainer.
        compute_metrics: As in Trainer.
        callbacks: As in Trainer.
        optimizers: As in Trainer.
        optimizer_cls_and_kwargs: As in Trainer.
        preprocess_logits_for_metrics: As in Trainer.
        sparsity: An `NxMConfig`, or what makes one. It can be the name of a recipe such as "admm", a pattern such as
            "2:4", a dict, or JSON. The path of a JSON or YAML file, or a method object, also works. Without it, a model
            that is sparse already keeps its masks.
        teacher: A model, or the directory of one. The student learns from its outputs too, with any recipe.
        distillation: How much the outputs of the teacher count: a `DistillationConfig`, or a dict of its fields.
        fix_loss_scale: Correct the loss of models that ignore `num_items_in_batch`. Trainer makes it too large by the
            number of accumulation steps and processes. It is never done with the recipe "dense".

    Raises:
        ValueError: If the sparsity, the teacher or the training is not supported. The message says what to write.
        TypeError: If an argument is of another kind, or has a name that Trainer does not have.

    Example:
        >>> trainer = NxMTrainer(model=model, args=args, train_dataset=rows, sparsity="admm")  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.save_model("bert-2of4")  # doctest: +SKIP
    """

    @overload
    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase
        | BaseImageProcessor
        | FeatureExtractionMixin
        | ProcessorMixin
        | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        *,
        sparsity: NxMConfig | str | Path | dict[str, Any] | Method | None = None,
        teacher: nn.Module | str | Path | None = None,
        distillation: DistillationConfig | dict[str, Any] | None = None,
        fix_loss_scale: bool = True,
    ) -> None: ...

    @overload  # in front of another Trainer, which has arguments of its own: `class X(NxMTrainer, SFTTrainer)`
    def __init__(
        self,
        *args: Any,
        sparsity: NxMConfig | str | Path | dict[str, Any] | Method | None = None,
        teacher: nn.Module | str | Path | None = None,
        distillation: DistillationConfig | dict[str, Any] | None = None,
        fix_loss_scale: bool = True,
        **kwargs: Any,
    ) -> None: ...

    def __init__(
        self,
        *args: Any,
        sparsity: NxMConfig | str | Path | dict[str, Any] | Method | None = None,
        teacher: nn.Module | str | Path | None = None,
        distillation: DistillationConfig | dict[str, Any] | None = None,
        fix_loss_scale: bool = True,
        **kwargs: Any,
    ) -> None:
        if teacher is None and distillation is not None:
            raise ValueError("distillation= needs a teacher; write teacher=MODEL_OR_DIRECTORY, or leave it out.")
        distillation = DistillationConfig.from_any(distillation)
        config = None if sparsity is None else NxMConfig.from_any(sparsity)
        if not self._joins_another:
            check_arguments(args, kwargs)
        super().__init__(*args, **kwargs)
        if any(isinstance(callback, NxMCallback) for callback in self.callback_handler.callbacks):
            raise ValueError("NxMTrainer does what NxMCallback does; use one of them.")
        self.sparsity = config_for(self._plain_model, config)
        self._teacher: Teacher | None = None
        if teacher is not None:  # made even if it is not used, to check it
            made = Teacher(teacher, self._plain_model, distillation, self.processing_class, self.args)
            self._teacher = made if distillation.enabled else None
        self._session = SparseTrainingSession(self.sparsity, self._teacher)
        self._session_callback = SessionCallback(self._session)
        self._config_before_search, self._fix_loss_scale = self.sparsity, fix_loss_scale
        self._view = "deployed"  # the weights that an evaluation sees
        self._packed = False  # whether save_model packs what it writes
        self._use_config(self.sparsity)
        if not self.sparsity.is_dense:  # dense training supports all that Trainer does
            self._session.check(self.args, self._plain_model)

    @property
    def _joins_another(self) -> bool:
        """Return True in front of another Trainer, which takes arguments of its own."""
        classes = type(self).__mro__
        return classes[classes.index(WholeCheckpoints) + 1] is not Trainer

    @property
    def _plain_model(self) -> nn.Module:
        """Return the model without accelerate's wrappers. Trainer has refused to be made without one."""
        assert self.model is not None
        return self.model

    @property
    def engine(self) -> Engine | None:
        """Return the engine of the last training, or None before the first."""
        return self._session.engine

    def _use_config(self, config: NxMConfig) -> None:
        """Train with this config from here on."""
        self.sparsity = self._session.config = config
        self._loss_scale = LossScale(
            self, correct=self._fix_loss_scale and not config.is_dense, needed=self._teacher is not None
        )
        callbacks = self.callback_handler.callbacks
        if self._session_callback in callbacks:
            callbacks.remove(self._session_callback)
        if not config.is_dense:
            # Before the other callbacks, so that they see the deployed weights when training ends.
            callbacks.insert(0, self._session_callback)

    # -- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; `resume_from_checkpoint=True` takes the newest complete checkpoint."""
        resume_from = None
        if resume_from_checkpoint and not self.sparsity.is_dense:
            resume_from = resume_from_checkpoint = checkpoint_to_resume(
                resume_from_checkpoint, str(self.args.output_dir)
            )
        self._session_callback.resume_from = resume_from
        if self.sparsity.is_dense and self.model is not None:  # None in a search, until model_init has made one
            # Dense training fills the zeros of a sparse model, unless they are frozen.
            remove_record(self.model, only_if_trained=True)
        if self.engine is not None:
            self.engine.release()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._session.unlock_output()  # after an error too

    get_optimizer_cls_and_kwargs = OptimizerChoice()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Do one training step as Trainer does; the first batch is also used to check the scale of the loss."""
        self._loss_scale.probe(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Do one prediction step as Trainer does; the first batch is also used to check the scale of the loss."""
        if any(inputs.get(name) is not None for name in self.label_names):
            self._loss_scale.probe(inputs)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss as Trainer does; during training with the teacher's part, if there is a teacher."""
        if self._teacher is None or not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        asked = {**inputs, **self._teacher.distillation.output_flags}
        loss, outputs = super().compute_loss(  # it may remove the labels from its inputs
            model, dict(asked), return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        counts_items = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        items = num_items_in_batch if counts_items else None
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices and items is not None else 1
        with self.accelerator.autocast():
            part = self._teacher.loss(outputs, asked, None if self._loss_scale.ignores_items else items)
        loss = (1 - self._teacher.distillation.weight) * loss + ranks * part
        return (loss, outputs) if return_outputs else loss

    def _hp_search_setup(self, trial: Any) -> None:
        """Set up a trial as Trainer does, and take out the keys that change the recipe."""
        if self.hp_search_backend is None or trial is None:
            return super()._hp_search_setup(trial)
        space, ours = self.hp_space, {}

        def theirs(parameters: dict[str, Any]) -> dict[str, Any]:
            ours.update(
                {k.removeprefix(SEARCH_PREFIX): v for k, v in parameters.items() if k.startswith(SEARCH_PREFIX)}
            )
            return {key: value for key, value in parameters.items() if not key.startswith(SEARCH_PREFIX)}

        self.hp_space = lambda trial: theirs(space(trial))
        try:
            super()._hp_search_setup(theirs(trial) if isinstance(trial, dict) else trial)
        finally:
            self.hp_space = space
        self._use_config(self._config_before_search.replace(**ours))

    def _load_best_model(self) -> None:
        self._session.prepare_best(self.state)
        super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.world_size > 1:  # each process has written a file, and the manifest comes next
            self.accelerator.wait_for_everyone()

    # -- evaluation and saving see the deployed weights ----------------------------------------------------------

    def evaluate(self, *args: Any, view: str | None = None, **kwargs: Any) -> dict[str, float]:
        """Evaluate as Trainer does.

        Args:
            *args: As in Trainer.
            view: "deployed" (default) evaluates the sparse weights that would be saved, "training" those that the
                forward pass uses during training.
            **kwargs: As in Trainer.

        Returns:
            The metrics.

        Raises:
            ValueError: If `view` is neither.
        """
        if view not in (None, "deployed", "training"):
            raise ValueError(f'view must be "deployed" or "training"; got {view!r}.')
        outer, self._view = self._view, view or self._view  # with several datasets, Trainer calls evaluate for each
        try:
            self._session.evaluations.enabled = self._view == "deployed"
            with self._session.deployed() if self._view == "deployed" else nullcontext():  # once for all datasets
                return super().evaluate(*args, **kwargs)
        finally:
            self._view, self._session.evaluations.enabled = outer, True

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Run the evaluation loop as Trainer does, on the deployed weights unless the view is "training"."""
        if self._view == "training":
            return super().evaluation_loop(*args, **kwargs)
        with self._session.deployed():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False, *, packed: bool = False) -> None:
        """Save the deployed model as Trainer does, with `nxm_config.json` and the model card.

        Args:
            output_dir: The directory; by default `args.output_dir`.
            _internal_call: As in Trainer.
            packed: Store kept values and indices, about half of the bytes of 2:4 layers. Such a directory needs
                `import nxm_hf` before `from_pretrained`. Checkpoints of the training always hold plain weights.

        Raises:
            ValueError: If a layer does not hold its pattern. Nothing is written then. With `packed`, also if no layer
                can be packed; the plain model has been written then.
        """
        if self.sparsity.is_dense:
            if packed:
                raise ValueError("This model is dense, so it cannot be packed. Leave packed=True out.")
            return super().save_model(output_dir, _internal_call=_internal_call)
        folder = Path(output_dir or str(self.args.output_dir))
        checkpoint = _internal_call and is_checkpoint(output_dir)
        saves = self.args.should_save
        with self._session.deployed(), self._saving(packed):
            plan, record, verification = self._session.deployed_record(self._plain_model)
            if saves and checkpoint:
                begin_checkpoint(folder)
            with replaced(folder, bytes_of(plan.whole)) if saves and not checkpoint else nullcontext(folder) as new:
                prints: dict[str, str] = {}
                super().save_model(str(new), _internal_call=True)
                if checkpoint and not self.args.save_only_model:
                    # A collective call: it comes before anything that can fail in one process alone.
                    prints = self._session.write_state(self.args, folder)
                elif plan.shards is not None:
                    prints = fingerprints(plan)
                if saves:
                    write_record(new, record, verification, self._session.card_facts(self._plain_model))
                    expected = prints.get("targets") if plan.shards is not None else None
                    check_written(new, plan, expected, record=not checkpoint and not self._packed)
                    if self._packed and not checkpoint:
                        pack_in_place(new)
                        record_model(new)
            if self.args.push_to_hub and not _internal_call:  # as Trainer does, which was told not to
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def push_to_hub(self, *args: Any, packed: bool = False, **kwargs: Any) -> Any:
        """Save the deployed model and upload it as Trainer does.

        Args:
            *args: As in Trainer.
            packed: Upload packed weights, as `save_model(packed=True)` writes them.
            **kwargs: As in Trainer.

        Returns:
            The result of Trainer's method.
        """
        with self._saving(packed):
            return super().push_to_hub(*args, **kwargs)

    @contextmanager
    def _saving(self, packed: bool) -> Iterator[None]:
        """Save packed in the body; also where Trainer saves and uploads of itself."""
        outer, self._packed = self._packed, packed or self._packed
        try:
            yield
        finally:
            self._packed = outer

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Create the model card as Trainer does, with a section on sparsity."""
        super().create_model_card(*args, **kwargs)
        if not self.sparsity.is_dense and self.is_world_process_zero():
            with self._session.deployed_alone():  # Trainers of TRL write the card before they save
                _, record, verification = self._session.deployed_record(self._plain_model, alone=True)
            facts = self._session.card_facts(self._plain_model)
            write_card(str(self.args.output_dir), record, verification, facts)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as Trainer does, with the metrics of sparsity beside the loss."""
        if "loss" in logs and self.engine is not None:
            logs.update(self.engine.metrics())
        super().log(logs, *args, **kwargs)


def _signature() -> inspect.Signature:
    """Return the signature that notebooks complete: Trainer's arguments, then those of NxMTrainer."""
    theirs = inspect.signature(Trainer.__init__)
    ours = inspect.signature(NxMTrainer.__init__).parameters.values()
    added = [parameter for parameter in ours if parameter.kind is parameter.KEYWORD_ONLY]
    return theirs.replace(parameters=[*theirs.parameters.values(), *added])


NxMTrainer.__init__.__signature__ = _signature()  # type: ignore[attr-defined]  # functions take any attribute
