"""AnalysisCallback: write what `nxm report` draws."""

import logging

from transformers import TrainerCallback, TrainerState, TrainingArguments

from nxm_hf.analysis import recording
from nxm_hf.engine.attach import engine_of
from nxm_hf.engine.engine import Engine

logger = logging.getLogger("nxm_hf")


class AnalysisCallback(TrainerCallback):
    """Writes `nxm_analysis.json` into `output_dir`, with what `nxm report` draws beside the Trainer's own log.

    It looks when training begins, at each logging step, and at the last step. Add it to an NxMTrainer, or to any
    Trainer that has an NxMCallback: `callbacks=[AnalysisCallback(), NxMCallback("admm")]`. The training is, bit for
    bit, what it is without it. A resumed training goes on with the file of the one before.
    """

    def __init__(self):
        self._engine: Engine | None = None
        self._begun = False
        self._recording: recording.Recording | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._engine, self._begun = None, False

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if self._begun:  # not in on_train_begin: NxMCallback may stand later in the list, and make its engine then
            return
        self._begun = True
        engine = engine_of(optimizer)
        if engine is None or not engine.plan.targets:
            logger.warning("AnalysisCallback writes nothing: this training makes no layer sparse.")
        elif state.is_world_process_zero:
            self._engine = engine
            self._recording = recording.open_recording(args.output_dir, state.global_step, engine, args.seed)
            if not self._recording["records"]:
                self._look(args, state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        watching = self._engine is not None and not self._engine.finished
        if watching and "loss" in (logs or {}) and recording.is_due(self._recording, state.global_step):
            self._look(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_training_stop and self._engine is not None:
            self._look(args, state)

    def _look(self, args: TrainingArguments, state: TrainerState) -> None:
        recording.record_step(self._recording, self._engine, state.global_step, args.output_dir)
