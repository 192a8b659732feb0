"""AnalysisCallback: record what `nxm report` draws beside the Trainer's own log."""

import logging
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm_hf.analysis import recording
from nxm_hf.engine import Engine
from nxm_hf.engine.attach import engine_of

logger = logging.getLogger("nxm_hf")


class AnalysisCallback(TrainerCallback):
    """Write `nxm_analysis.json` into `output_dir`, with samples of weights and masks over the training.

    It records when training begins, at each logging step, and at the last step. Add it to an NxMTrainer, or to any
    Trainer that has an NxMCallback: `callbacks=[AnalysisCallback(), NxMCallback("admm")]`. The training stays bit for
    bit the same. A resumed training continues the file.
    """

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._begun = False
        self._words: recording.Words = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._engine, self._begun = None, False

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        # Not in on_train_begin: an NxMCallback later in the list makes its engine there.
        if self._begun or optimizer is None:
            return
        self._begun = True
        engine = engine_of(optimizer)
        if engine is None or not engine.plan.targets:
            logger.warning("AnalysisCallback writes nothing: this training makes no layer sparse.")
        elif state.is_world_process_zero:
            self._engine = engine
            self._words = recording.opened(str(args.output_dir), state.global_step, engine, args.seed)
            if not self._words["records"]:
                self._record(args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        training = self._engine is not None and not self._engine.finished
        if training and "loss" in (logs or {}) and recording.is_due(self._words, state.global_step):
            self._record(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop and self._engine is not None:
            self._record(args, state)

    def _record(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._engine is not None:
            recording.record(self._words, self._engine, state.global_step, str(args.output_dir))
