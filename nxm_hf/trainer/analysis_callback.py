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
        self._recording: recording.Recording | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._engine, self._recording, self._begun = None, None, False

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
        if engine is None or not engine.plan.trained:
            logger.warning("AnalysisCallback writes nothing: this training makes no layer sparse.")
        elif engine.plan.shards is not None:
            logger.warning("AnalysisCallback writes nothing: it needs whole weights, and FSDP2 shards them.")
        elif state.is_world_process_zero:
            self._engine = engine
            opened = recording.open_recording(str(args.output_dir), state.global_step, engine, args.seed)
            self._recording = opened
            if not opened["records"]:
                self._record(args, state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._recording is None or self._engine is None or self._engine.finished:
            return
        if "loss" in (logs or {}) and recording.is_due(self._recording, state.global_step):
            self._record(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_training_stop:
            self._record(args, state)

    def _record(self, args: TrainingArguments, state: TrainerState) -> None:
        if self._engine is not None and self._recording is not None:
            recording.record_step(self._recording, self._engine, state.global_step, str(args.output_dir))
